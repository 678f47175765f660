//! Owns the calls of the C interface with bad arguments: every domain, name, level and length that is none.
//! The fake host runs them too, where the library serves.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

/// Where the calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A process without an interpreter.
    #[allow(dead_code, reason = "the tests' own process")]
    NoHost,
    /// An interpreter that has not started, and a library that is not set up.
    #[allow(dead_code, reason = "the fake host")]
    Host,
    /// An interpreter that the library serves.
    #[allow(dead_code, reason = "the fake host")]
    Served,
}

/// How many calls were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) names: usize,
    pub(crate) domains: usize,
    pub(crate) levels: usize,
    pub(crate) buffers: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { names, domains, levels, buffers } = self;
        write!(f, "{names} names, {domains} domains, {levels} levels, {buffers} buffers")
    }
}

/// A function of the library; `F` is its type.
pub(crate) fn function<F: Copy>(library: *mut c_void, name: &CStr) -> F {
    // SAFETY: a name that ends with a NUL, and a handle that is open.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?} is exported");
    // SAFETY: the address of a function, as a function pointer of the same size.
    unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) }
}

/// `pymem_setup(name)`.
pub(crate) fn setup(library: *mut c_void, name: &CStr) -> c_int {
    let setup: unsafe extern "C" fn(*const c_char) -> c_int = function(library, c"pymem_setup");
    // SAFETY: 1: a text; 2: the only thread that uses the host.
    unsafe { setup(name.as_ptr()) }
}

const UNKNOWN_NAME: c_int = -1;
const TOO_LATE: c_int = -2;

/// Every function of the C interface with arguments that are none.
pub(crate) fn sweep(library: *mut c_void, state: State) -> Counts {
    let counts = Counts {
        names: names(library, state),
        domains: domains(library),
        levels: levels(library),
        buffers: buffers(library, state),
    };
    let allocated: unsafe extern "C" fn() -> usize = function(library, c"pymem_allocated_blocks");
    // SAFETY: takes nothing.
    let allocated = unsafe { allocated() };
    assert!(state == State::Served || allocated == 0, "{allocated} blocks");
    counts
}

/// Numbers at every edge of `int`, and around the few that mean something.
fn numbers() -> impl Iterator<Item = c_int> {
    let powers = (0..31).flat_map(|power| [-1, 0, 1].map(|near| (1 << power) + near));
    let edges = [c_int::MIN, c_int::MIN + 1, c_int::MAX - 1, c_int::MAX];
    powers.flat_map(|number: c_int| [number, number.wrapping_neg()]).chain(-300..=300).chain(edges)
}

fn names(library: *mut c_void, state: State) -> usize {
    let mut count = 0;
    let mut refuse = |name: &[u8]| {
        let mut text = name.to_vec();
        text.push(0);
        let text = CStr::from_bytes_until_nul(&text).expect("a NUL was added");
        assert_eq!(setup(library, text), UNKNOWN_NAME, "{text:?}");
        count += 1;
    };
    for byte in 1..=u8::MAX {
        for length in [1, 2, 8, 64] {
            refuse(&vec![byte; length]);
        }
        refuse(&[b"pymalloc".as_slice(), &[byte]].concat());
        refuse(&[&[byte], b"pymalloc".as_slice()].concat());
    }
    for length in (1..=300).chain([1000, 4095, 4096, 65_536, 1 << 20]) {
        refuse(&vec![b'm'; length]);
        refuse(&b"xmalloc_debug_".iter().copied().cycle().take(length.max(7)).collect::<Vec<_>>());
    }
    for name in [c"", c"default", c"malloc", c"pymalloc_debug", c"mimalloc", c"debug"] {
        // A good name would be taken where a host waits.
        if state != State::Host {
            assert_eq!(setup(library, name), TOO_LATE, "{name:?}");
            count += 1;
        }
    }
    count
}

fn domains(library: *mut c_void) -> usize {
    let get: unsafe extern "C" fn(c_int, *mut [usize; 5]) =
        function(library, c"pymem_get_allocator");
    numbers()
        .inspect(|&domain| {
            let mut words = [7_usize; 6];
            // SAFETY: 1: five writable words.
            unsafe { get(domain, words.as_mut_ptr().cast()) };
            let is_domain = (0..3).contains(&domain);
            assert_eq!(words[1..5].iter().all(|word| *word > 7), is_domain, "{domain}: {words:?}");
            assert!(is_domain || words[..5] == [0; 5], "{domain}: {words:?}");
            assert_eq!(words[5], 7, "{domain}: a sixth word was written");
            // SAFETY: 1: null.
            unsafe { get(domain, std::ptr::null_mut()) };
        })
        .count()
}

fn levels(library: *mut c_void) -> usize {
    let release: unsafe extern "C" fn(c_int) -> usize = function(library, c"pymem_release");
    let release_at = |level: &c_int| {
        // SAFETY: any number may be asked for.
        let _bytes = unsafe { release(*level) };
    };
    numbers().inspect(release_at).count()
}

/// Lengths up to that of the whole text, all near the ends: never a byte too far, and always a closing NUL.
fn buffers(library: *mut c_void, state: State) -> usize {
    const UNTOUCHED: u8 = 7;
    let stats: unsafe extern "C" fn(*mut c_char, usize) -> c_int =
        function(library, c"pymem_stats_json");
    let stats = |buffer: *mut u8, length| {
        // SAFETY: 1: null, or that many bytes.
        let whole = unsafe { stats(buffer.cast(), length) };
        usize::try_from(whole).expect("statistics")
    };
    let whole = stats(std::ptr::null_mut(), 0);
    assert!(whole > 0 && stats(std::ptr::null_mut(), usize::MAX) == whole);
    let mut buffer = vec![UNTOUCHED; whole + 64];
    let lengths =
        || (0..64).chain((64..whole).step_by(61)).chain(whole.saturating_sub(32)..whole + 32);
    for length in lengths() {
        buffer.fill(UNTOUCHED);
        // The text may grow by a digit between two calls, by nothing else.
        assert!(stats(buffer.as_mut_ptr(), length).abs_diff(whole) < 8);
        let written = length.min(whole + 8);
        assert!(buffer[length..].iter().all(|byte| *byte == UNTOUCHED), "{length} bytes");
        assert!(length == 0 || buffer[..written].contains(&0), "{length} bytes: no closing NUL");
    }
    let text = CStr::from_bytes_until_nul(&buffer).expect("a closing NUL").to_str();
    let served = format!("\"installed\":{}", state == State::Served);
    assert!(text.is_ok_and(|text| text.contains(&served)), "{served} in {text:?}");
    lengths().count()
}
