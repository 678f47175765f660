//! Owns the rewriting of a program into one whose every operation fits the state of its slot, so that a replay need
//! not look. What is rewritten how is said at `Op`.

use std::collections::HashMap;

use crate::op::{Event, Op, OpKind};

/// A program in which `malloc` and `calloc` meet empty slots, `free` meets full ones, every operation has the domain
/// of its block, and a `free` carries the size of its block.
#[derive(Debug, Clone)]
pub(crate) struct Fitting {
    pub(crate) events: Vec<Event>,
    /// A `free` for each block that is live after the last event, in the order of the slots.
    pub(crate) leftovers: Vec<Op>,
    /// Length of the slot table; the slots are numbered anew, in the order of their first use.
    pub(crate) slots: u32,
}

/// The block in a full slot.
#[derive(Clone, Copy)]
struct Held {
    domain: u8,
    size: usize,
}

impl Fitting {
    pub(crate) fn new(events: impl IntoIterator<Item = Event>) -> Self {
        let mut renumbered: HashMap<u32, u32> = HashMap::new();
        let mut table: Vec<Option<Held>> = Vec::new();
        let mut fitting = Vec::new();
        for event in events {
            // A slot gets its number with its first call, so that a prefix of the result has the same numbers.
            if event.op.kind() == OpKind::Free && !renumbered.contains_key(&event.op.slot()) {
                continue;
            }
            let slot = *renumbered.entry(event.op.slot()).or_insert_with(|| {
                table.push(None);
                (table.len() - 1) as u32
            });
            let held = &mut table[slot as usize];
            let op = event.op;
            let (kind, size) = (op.kind(), op.size());
            let domain = held.map_or(op.domain(), |held| held.domain);
            let free = held.map(|held| Op::new(OpKind::Free, slot, held.domain, held.size));
            match kind {
                OpKind::Malloc | OpKind::Calloc => {
                    fitting.extend(free.map(|op| Event { op, ..event }));
                    fitting.push(Event { op: op.with_slot(slot), ..event });
                    *held = Some(Held { domain: op.domain(), size });
                }
                OpKind::Realloc => {
                    fitting.push(Event { op: Op::realloc(slot, domain, size), ..event });
                    *held = Some(Held { domain, size });
                }
                OpKind::Free => {
                    fitting.extend(free.map(|op| Event { op, ..event }));
                    *held = None;
                }
            }
        }
        let leftovers = (0..).zip(&table).filter_map(|(slot, held)| {
            held.map(|held| Op::new(OpKind::Free, slot, held.domain, held.size))
        });
        Self { events: fitting, leftovers: leftovers.collect(), slots: table.len() as u32 }
    }
}
