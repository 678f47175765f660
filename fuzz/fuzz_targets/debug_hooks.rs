//! A correct program of operations through the debug hooks under options that the input chooses, and through a sampler of
//! guard pages, over each backend: no report, no shadow-model fault, no block kept. Beside it one bug, which the input
//! chooses too, reported once and by its name.
#![no_main]

use std::cell::RefCell;
use std::ptr::NonNull;

use libfuzzer_sys::fuzz_target;
use malloc_api::testing::Counting;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{ShadowModel, generate::ops_from_bytes, run};
use memdebug::{Domain, DebugHooks, GuardSampler, Host, Violation, ViolationKind, handler};
use mimalloc_heaps::MiMalloc;
use pymalloc_core::LocalPymalloc;

/// Options, and whether they know every live block and hold freed ones.
const OPTIONS: [(&str, bool, bool); 7] = [
    ("", false, false),
    ("serial", false, false),
    ("full_erase", false, false),
    ("registry", true, false),
    ("quarantine=64K:16", false, true),
    ("strict", true, true),
    ("strict,serial,full_erase", true, true),
];

thread_local! {
    static SEEN: RefCell<Vec<ViolationKind>> = const { RefCell::new(Vec::new()) };
}

fn collect(violation: &Violation) {
    SEEN.with_borrow_mut(|seen| seen.push(violation.kind()));
}

fuzz_target!(|bytes: &[u8]| {
    let (&[options, bug, amount], ops) = bytes.split_first_chunk().unwrap_or((&[0; 3], bytes));
    let ops = ops_from_bytes(ops, 64, 1 << 14);
    let over = |inner: &dyn Malloc| {
        let inner = Counting::new(inner);
        let (text, registry, quarantine) = OPTIONS[usize::from(options) % OPTIONS.len()];
        let hooks = |api| {
            DebugHooks::new(&inner, api)
                .with_host(Host::new().with_handler(collect))
                .with_options(&text.parse().expect("options"))
                .expect("memory for the options")
        };
        let (obj, mem) = (hooks(Domain::Obj), hooks(Domain::Mem));
        let mut model = ShadowModel::new([&obj; 3]);
        for &op in &ops {
            model.step(op).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        assert_eq!(SEEN.take(), [], "{text}: a report of no bug");
        plant(bug, amount.into(), &obj, &mem, registry, quarantine);
        model.free_all().unwrap_or_else(|error| panic!("{text}: {error}"));
        obj.release_quarantine();
        assert_eq!(SEEN.take(), [], "{text}: a report of no bug");
        let sampler = GuardSampler::new(&inner, Domain::Obj)
            .with_host(Host::new().with_handler(handler::panic))
            .with_options(&"guard=1/3".parse().expect("an option's word"))
            .expect("address space for guard pages");
        run(&ops, &sampler).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(inner.counts().live_blocks, 0, "{text}: blocks were kept");
    };
    over(&LibcMalloc);
    over(&LocalPymalloc::new(LibcMalloc));
    over(&MiMalloc);
});

/// Does a bug to a block of its own, mends what it damaged, and asserts the report.
fn plant<A: Malloc>(
    bug: u8,
    amount: usize,
    hooks: &DebugHooks<A>,
    other: &DebugHooks<A>,
    registry: bool,
    quarantine: bool,
) {
    let size = 8 * amount + 1;
    let block = hooks.malloc(size).expect("memory");
    let at = block.as_ptr();
    let free = |hooks: &DebugHooks<A>, p: *mut u8| {
        // SAFETY: 1 and 2: the block's last use, or a bug that the hooks catch.
        unsafe { hooks.free(NonNull::new(p)) };
    };
    // Changes a byte of the hooks' own or of a held block, frees `block` where it is live, and puts the byte back.
    let changed = |place: *mut u8, found_by: &dyn Fn()| {
        // SAFETY: 1: header, guard or data of a block that the hooks have not given back.
        let before = unsafe { place.read() };
        // SAFETY: as above.
        unsafe { place.write(before ^ 0x41) };
        found_by();
        before
    };
    let found = match bug % 7 {
        end @ (1 | 2) => {
            let (place, kind) = match end {
                1 => (at.wrapping_add(size + amount % 8), ViolationKind::TrailingPad),
                _ => (at.wrapping_sub(1 + amount % 7), ViolationKind::LeadingPad),
            };
            let before = changed(place, &|| free(hooks, at));
            // SAFETY: 1: as the block was not freed.
            unsafe { place.write(before) };
            kind
        }
        3 => {
            free(other, at);
            ViolationKind::WrongDomain { allocated: hooks.domain() }
        }
        4 if registry && size > 1 => {
            let inside = 16.min(size - 1);
            free(hooks, at.wrapping_add(inside));
            ViolationKind::InteriorPointer { block: at.addr(), size }
        }
        5 if registry && quarantine => {
            free(hooks, at);
            free(hooks, at);
            return assert_eq!(SEEN.take(), [ViolationKind::DoubleFree]);
        }
        6 if quarantine => {
            let offset = amount % size;
            free(hooks, at);
            let before = changed(at.wrapping_add(offset), &|| {
                hooks.release_quarantine();
            });
            let offset = offset as isize;
            let kind = ViolationKind::UseAfterFree { offset, found: before ^ 0x41, changed: 1 };
            return assert_eq!(SEEN.take(), [kind]);
        }
        _ => return free(hooks, at),
    };
    assert_eq!(SEEN.take(), [found]);
    free(hooks, at);
}
