//! Hooks whose violations are collected by thread, and the seeded bugs.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ptr::NonNull;

use malloc_api::{Forward, LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, GuardSampler, Host, Options, Violation};

thread_local! {
    static SEEN: RefCell<Vec<Violation>> = const { RefCell::new(Vec::new()) };
    static GIL: Cell<bool> = const { Cell::new(true) };
}

pub(crate) fn collect(violation: &Violation) {
    SEEN.with_borrow_mut(|seen| seen.push(violation.clone()));
}

/// The violations of this thread since the last call.
pub(crate) fn seen() -> Vec<Violation> {
    SEEN.take()
}

fn gil() -> bool {
    GIL.get()
}

/// A host that collects, with a GIL that a test can let go of.
pub(crate) const COLLECTING: Host = Host::new().with_handler(collect).with_thread_check(gil);

/// Runs `f` without the GIL.
pub(crate) fn without_gil<T>(f: impl FnOnce() -> T) -> T {
    GIL.set(false);
    let result = f();
    GIL.set(true);
    result
}

pub(crate) type Hooks = Layered<LibcMalloc>;

pub(crate) fn options(text: &str) -> Options {
    text.parse().expect("an option's word")
}

/// Debug hooks below guard pages, which stand only where the options ask for them.
pub(crate) struct Layered<A: Malloc>(GuardSampler<DebugHooks<A>>);

impl<A: Malloc> Layered<A> {
    pub(crate) fn new(inner: A, host: Host, domain: Domain, text: &str) -> Self {
        let options = options(text);
        let hooks = DebugHooks::new(inner, domain).with_host(host);
        let hooks = hooks.with_options(&options.for_hooks()).expect("memory for the options");
        let sampler = GuardSampler::new(hooks, domain).with_host(host).with_thread_rule();
        Self(sampler.with_options(&options.for_sampler()).expect("pages"))
    }
}

// SAFETY: 1 and 2: the sampler that the value owns, of which there is no clone; 3: a reference.
unsafe impl<A: Malloc> Forward for Layered<A> {
    type Target = GuardSampler<DebugHooks<A>>;

    fn target(&self) -> &Self::Target {
        &self.0
    }
}

impl<A: Malloc> Deref for Layered<A> {
    type Target = DebugHooks<A>;

    fn deref(&self) -> &DebugHooks<A> {
        self.0.inner()
    }
}

/// Hooks over the C library that report to `host`.
pub(crate) fn hooks_of(host: Host, domain: Domain, text: &str) -> Hooks {
    Layered::new(LibcMalloc, host, domain, text)
}

/// Hooks over the C library that collect.
pub(crate) fn hooks(domain: Domain, text: &str) -> Hooks {
    hooks_of(COLLECTING, domain, text)
}

/// One seeded bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    None,
    /// Writes this many bytes past the end.
    Overflow(usize),
    /// Writes this many bytes in front of the start.
    Underflow(usize),
    /// Reads the byte this far from the start of a live block, which is none of it.
    Read(isize),
    /// Reads the byte this far from the start of a freed block.
    ReadAfterFree(isize),
    DoubleFree,
    /// Writes one byte of a freed block, this far from its start.
    WriteAfterFree(isize),
    /// Frees a pointer this far into the block.
    Interior(usize),
    Stack,
    Static,
    Unmapped,
    /// Frees a block that the allocator below gave out without the hooks.
    NoHooks,
    WrongDomain,
    NoGil,
    /// `realloc` instead of `free`, of a block with this many bytes overwritten past the end.
    ReallocOverflow(usize),
}

/// A value that no fill uses.
const WRITTEN: u8 = 0x41;

fn scribble(at: *mut u8, count: usize) {
    // SAFETY: a planted bug: the bytes are the hooks' or a held block's, so nobody else's.
    unsafe { at.write_bytes(WRITTEN, count) };
}

fn look(at: *const u8) {
    // SAFETY: a planted bug: the byte is the hooks', a held block's, or faults.
    std::hint::black_box(unsafe { at.read_volatile() });
}

/// A page that is surely not mapped.
fn unmapped() -> NonNull<u8> {
    // SAFETY: a fresh mapping of one page.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    NonNull::new(page.cast::<u8>().wrapping_add(64)).expect("a mapping")
}

impl Bug {
    /// Allocates a block of `size` bytes from `hooks`, does the bug to it, and frees what is left.
    pub(crate) fn plant(self, hooks: &Hooks, other: &Hooks, size: usize) {
        static NO_HEAP: [u64; 16] = [7; 16];
        let p = hooks.malloc(size).expect("memory");
        scribble(p.as_ptr(), size);
        let at = p.as_ptr();
        let free = |hooks: &Hooks, p: *mut u8| {
            // SAFETY: the block, or a planted bug.
            unsafe { hooks.free(NonNull::new(p)) };
        };
        match self {
            Self::None => free(hooks, at),
            Self::Overflow(count) => {
                scribble(at.wrapping_add(size), count);
                free(hooks, at);
            }
            Self::ReallocOverflow(count) => {
                scribble(at.wrapping_add(size), count);
                // SAFETY: a planted bug.
                assert_eq!(unsafe { hooks.realloc(Some(p), size + 100) }, None);
            }
            Self::Underflow(count) => {
                scribble(at.wrapping_sub(count), count);
                free(hooks, at);
            }
            Self::Read(offset) => {
                look(at.wrapping_offset(offset));
                free(hooks, at);
            }
            Self::ReadAfterFree(offset) => {
                free(hooks, at);
                look(at.wrapping_offset(offset));
            }
            Self::DoubleFree => {
                free(hooks, at);
                free(hooks, at);
            }
            Self::WriteAfterFree(offset) => {
                free(hooks, at);
                scribble(at.wrapping_offset(offset), 1);
                hooks.release_quarantine();
            }
            Self::Interior(offset) => {
                free(hooks, at.wrapping_add(offset));
                free(hooks, at);
            }
            Self::Stack => {
                let mut local = [7_u64; 16];
                free(hooks, std::hint::black_box(local.as_mut_ptr()).wrapping_add(8).cast());
                free(hooks, at);
            }
            Self::Static => {
                free(hooks, NO_HEAP.as_ptr().wrapping_add(8).cast_mut().cast());
                free(hooks, at);
            }
            Self::Unmapped => {
                free(hooks, unmapped().as_ptr());
                free(hooks, at);
            }
            Self::NoHooks => {
                let bare = LibcMalloc.calloc(1, size.max(64)).expect("memory");
                free(hooks, bare.as_ptr());
                // SAFETY: live, as the hooks refused it.
                unsafe { LibcMalloc.free(Some(bare)) };
                free(hooks, at);
            }
            Self::WrongDomain => {
                free(other, at);
                free(hooks, at);
            }
            Self::NoGil => without_gil(|| free(hooks, at)),
        }
    }

    /// The text that [`parse`](Self::parse) reads.
    pub(crate) fn text(self) -> String {
        format!("{self:?}")
    }

    /// The inverse of [`text`](Self::text).
    pub(crate) fn parse(text: &str) -> Self {
        let (name, number) = match text.strip_suffix(')').and_then(|t| t.split_once('(')) {
            Some((name, number)) => (name, number.parse::<isize>().expect("a number")),
            None => (text, 0),
        };
        let count = number.unsigned_abs();
        match name {
            "None" => Self::None,
            "Overflow" => Self::Overflow(count),
            "ReallocOverflow" => Self::ReallocOverflow(count),
            "Underflow" => Self::Underflow(count),
            "Read" => Self::Read(number),
            "ReadAfterFree" => Self::ReadAfterFree(number),
            "DoubleFree" => Self::DoubleFree,
            "WriteAfterFree" => Self::WriteAfterFree(number),
            "Interior" => Self::Interior(count),
            "Stack" => Self::Stack,
            "Static" => Self::Static,
            "Unmapped" => Self::Unmapped,
            "NoHooks" => Self::NoHooks,
            "WrongDomain" => Self::WrongDomain,
            "NoGil" => Self::NoGil,
            _ => panic!("no bug is called {text}"),
        }
    }

    /// All bugs that a block of `size` bytes can have; those of the quarantine only if there is one.
    pub(crate) fn all(size: usize, quarantine: bool) -> Vec<Self> {
        let mut bugs = vec![
            Self::DoubleFree,
            Self::Stack,
            Self::Static,
            Self::Unmapped,
            Self::NoHooks,
            Self::WrongDomain,
            Self::NoGil,
        ];
        bugs.extend((1..=8).map(Self::Overflow));
        bugs.extend((1..=8).map(Self::ReallocOverflow));
        bugs.extend((1..=16).map(Self::Underflow));
        if size > 1 {
            bugs.extend([1, size / 2, size - 1].map(Self::Interior));
        }
        if size > 64 {
            bugs.push(Self::Interior(48));
        }
        if quarantine {
            let size = size as isize;
            let offsets = [-16, -9, -8, -1, 0, 1, 7, 8, 15, 16, size / 2, size - 1, size, size + 7];
            bugs.extend(
                offsets.iter().filter(|&&o| o < size + 8).map(|&o| Self::WriteAfterFree(o)),
            );
        }
        bugs
    }
}

/// The other domain of a wrong free.
pub(crate) fn another(domain: Domain) -> Domain {
    match domain {
        Domain::Raw => Domain::Mem,
        Domain::Mem => Domain::Obj,
        Domain::Obj => Domain::Raw,
    }
}

pub(crate) const SIZES: [usize; 9] = [0, 1, 7, 8, 16, 512, 513, 4096, 1 << 20];
