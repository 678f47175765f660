//! Owns visits: every area and every live block of an interpreter's heaps, with the world stopped.
//!
//! A heap's pages are listed by arena, owned and abandoned alike, so one walk of the heap sees the blocks of its owner, those
//! that earlier owners have left, and pages that were given up for being full. Blocks that came straight from the system
//! (larger than mimalloc's arenas take, or aligned to more than 64 KiB) are in no arena: abandoned ones are on a list of the
//! heap, the owner's are found through its theap.

use core::ffi::c_void;
use core::ops::ControlFlow;
use core::ptr::NonNull;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use crate::ffi;
use crate::heap::{Heap, HeapKind};
use crate::heap_set::HeapSet;
use crate::registry;
use crate::world::{Stopped, World};

/// A live block, as a visitor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it starts. An over-aligned block's own address may lie further on in it.
    pub start: NonNull<u8>,
    /// Its bytes, at least what was asked for.
    pub bytes: usize,
    /// The heap that it lives in.
    pub kind: HeapKind,
}

/// A run of blocks of one size: what mimalloc calls a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Area {
    /// The address of the first block.
    pub start: usize,
    /// Bytes that each block holds, without what a debugging build of mimalloc puts between blocks.
    pub block_bytes: usize,
    /// Live blocks, exact.
    pub used_blocks: usize,
    /// Bytes that the blocks made so far take.
    pub committed_bytes: usize,
    /// Bytes that it can grow to.
    pub reserved_bytes: usize,
    /// The heap that it belongs to.
    pub kind: HeapKind,
    /// The number of the heap set, which stays the same while the set changes hands.
    pub set: usize,
    /// Whether a thread owns the set; else the area waits for the next one.
    pub is_owned: bool,
}

/// Calls `visitor` for every live block of `kind` of the interpreter with this number.
pub(crate) fn blocks<W: World + ?Sized>(
    stopped: &Stopped<'_, W>,
    interpreter: u64,
    kind: HeapKind,
    visitor: &mut dyn FnMut(Block) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for_each_set(interpreter, |set| {
        visit_heap_blocks(stopped, set.heap(kind), &mut |start, bytes| {
            visitor(Block { start, bytes, kind })
        })
    })
}

/// Calls `visitor` for every area of every heap of the interpreter with this number.
pub(crate) fn areas<W: World + ?Sized>(
    stopped: &Stopped<'_, W>,
    interpreter: u64,
    visitor: &mut dyn FnMut(Area) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for_each_set(interpreter, |set| {
        set.heaps().try_for_each(|(kind, heap)| {
            heap_areas(stopped, heap, &mut |area| {
                visitor(Area {
                    start: area.blocks.addr(),
                    block_bytes: area.block_size,
                    used_blocks: area.used,
                    committed_bytes: area.committed,
                    reserved_bytes: area.reserved,
                    kind,
                    set: set.number(),
                    is_owned: set.is_owned(),
                })
            })
        })
    })
}

/// Calls `work` with every set of the interpreter with this number, newest first, under the registry's lock.
fn for_each_set(
    interpreter: u64,
    work: impl FnMut(&'static HeapSet) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let registry = registry::lock();
    HeapSet::all(&registry).filter(|set| set.interpreter() == interpreter).try_for_each(work)
}

/// What a C visitor is called with.
struct Call<'v, F: ?Sized> {
    visitor: &'v mut F,
    flow: ControlFlow<()>,
    /// A panic of the visitor, which must not unwind through C.
    panic: Option<Box<dyn Any + Send>>,
}

impl<F: ?Sized> Call<'_, F> {
    /// Runs `call` on the visitor; false breaks the walk off.
    fn run(&mut self, call: impl FnOnce(&mut F) -> ControlFlow<()>) -> bool {
        let visitor = &mut *self.visitor;
        match panic::catch_unwind(AssertUnwindSafe(|| call(visitor))) {
            Ok(flow) => self.flow = flow,
            Err(panic) => {
                self.panic = Some(panic);
                self.flow = ControlFlow::Break(());
            }
        }
        self.flow.is_continue()
    }

    fn finish(self) -> ControlFlow<()> {
        if let Some(panic) = self.panic {
            panic::resume_unwind(panic);
        }
        self.flow
    }
}

type BlockVisitor<'v> = dyn FnMut(NonNull<u8>, usize) -> ControlFlow<()> + 'v;
type AreaVisitor<'v> = dyn FnMut(&ffi::mi_heap_area_t) -> ControlFlow<()> + 'v;

/// mimalloc calls it with a null block for each area, then with each live block of it.
unsafe extern "C" fn call_with_block(
    _heap: *const ffi::mi_heap_t,
    _area: *const ffi::mi_heap_area_t,
    block: *mut c_void,
    bytes: usize,
    call: *mut c_void,
) -> bool {
    let Some(block) = NonNull::new(block.cast::<u8>()) else { return true };
    // SAFETY: `visit_heap_blocks` passes its call, which nobody else uses during the walk.
    let call = unsafe { &mut *call.cast::<Call<'_, BlockVisitor<'_>>>() };
    call.run(|visitor| visitor(block, bytes))
}

/// mimalloc calls it with a null block for each area.
unsafe extern "C" fn call_with_area(
    _heap: *const ffi::mi_heap_t,
    area: *const ffi::mi_heap_area_t,
    _block: *mut c_void,
    _bytes: usize,
    call: *mut c_void,
) -> bool {
    // SAFETY: mimalloc passes a filled area.
    let mut area = unsafe { *area };
    // SAFETY: `reserved1` is the area's page, and the world is stopped. Takes in what other threads have freed.
    unsafe { ffi::_mi_page_free_collect(area.reserved1, true) };
    // SAFETY: as above. Fills the area again, with the count as it is now.
    unsafe { ffi::_mi_heap_area_init(&raw mut area, area.reserved1) };
    // SAFETY: `heap_areas` passes its call, which nobody else uses during the walk.
    let call = unsafe { &mut *call.cast::<Call<'_, AreaVisitor<'_>>>() };
    call.run(|visitor| visitor(&area))
}

/// Calls `visitor` with the start and the bytes of every live block of `heap`.
fn visit_heap_blocks<W: World + ?Sized>(
    stopped: &Stopped<'_, W>,
    heap: &Heap,
    visitor: &mut BlockVisitor<'_>,
) -> ControlFlow<()> {
    if let Some(heap) = heap.get() {
        let mut call = Call { visitor, flow: ControlFlow::Continue(()), panic: None };
        let arg = (&raw mut call).cast();
        // SAFETY: a live heap, the world stopped, and a visitor that takes what `arg` points to.
        unsafe { ffi::mi_heap_visit_blocks(heap.as_ptr(), true, Some(call_with_block), arg) };
        call.finish()?;
    }
    visit_areas_outside_arenas(stopped, heap, &mut |area| {
        let mut call =
            Call { visitor: &mut *visitor, flow: ControlFlow::Continue(()), panic: None };
        let arg = (&raw mut call).cast();
        let page = area.reserved1;
        // SAFETY: an area and its page, the world stopped, and a visitor that takes what `arg` points to.
        unsafe { ffi::_mi_theap_area_visit_blocks(area, page, Some(call_with_block), arg) };
        call.finish()
    })
}

/// Calls `visitor` with every area of `heap`.
pub(crate) fn heap_areas<W: World + ?Sized>(
    stopped: &Stopped<'_, W>,
    heap: &Heap,
    visitor: &mut AreaVisitor<'_>,
) -> ControlFlow<()> {
    if let Some(heap) = heap.get() {
        let mut call = Call { visitor, flow: ControlFlow::Continue(()), panic: None };
        let arg = (&raw mut call).cast();
        // SAFETY: a live heap, the world stopped, and a visitor that takes what `arg` points to.
        unsafe { ffi::mi_heap_visit_blocks(heap.as_ptr(), false, Some(call_with_area), arg) };
        call.finish()?;
    }
    visit_areas_outside_arenas(stopped, heap, visitor)
}

/// Calls `visitor` with every area that the owner of `heap` has straight from the system.
fn visit_areas_outside_arenas<W: World + ?Sized>(
    _stopped: &Stopped<'_, W>,
    heap: &Heap,
    visitor: &mut AreaVisitor<'_>,
) -> ControlFlow<()> {
    if !heap.is_open() {
        return ControlFlow::Continue(());
    }
    let mut outside = |area: &ffi::mi_heap_area_t| {
        // SAFETY: any address may be asked for.
        if unsafe { ffi::_mi_arenas_contain(area.blocks) } {
            return ControlFlow::Continue(());
        }
        visitor(area)
    };
    let visitor: &mut AreaVisitor<'_> = &mut outside;
    let mut call = Call { visitor, flow: ControlFlow::Continue(()), panic: None };
    let arg = (&raw mut call).cast();
    // SAFETY: a live theap whose owner is stopped, and a visitor that takes what `arg` points to.
    unsafe { ffi::mi_theap_visit_blocks(heap.theap(), false, Some(call_with_area), arg) };
    call.finish()
}
