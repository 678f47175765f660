//! Owns `Tables`: what a profile knows, as lists whose rows name each other by number, read one row after the other.

use crate::origin::Origin;
use crate::profile::Profile;
use crate::site::class_bytes;
use crate::snapshot::Amount;
use crate::source::{Location, StackSource};
use crate::stacks::unrecorded;

/// What a profile knew at one moment: a list of locations, a tree of nodes, and the sites.
///
/// Nothing is copied, so that a profile of any size is read in no memory of its own; a [`Snapshot`](crate::Snapshot) has
/// whole stacks, which take several times what the profile itself does. A row names rows of the list before by their numbers,
/// which begin at 0. Each row is read when its turn comes: other threads may have counted more by then.
#[derive(Debug)]
pub struct Tables<S: 'static> {
    profile: &'static Profile<S>,
    sites: u32,
    nodes: u32,
    places: u32,
}

/// A row of [`Tables::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The number of the location.
    pub location: u32,
    /// The number of the caller's node, which is below the node's own; `None` for an outermost frame.
    pub caller: Option<u32>,
}

/// A row of [`Tables::sites`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of the innermost frame's node; `None` for a stack without frames.
    pub node: Option<u32>,
    /// Which domain allocated, or who reported the memory.
    pub origin: Origin,
    /// The largest size in bytes of the class.
    pub class_bytes: u64,
    /// What is live.
    pub live: Amount,
    /// What was live at the peak.
    pub peak: Amount,
    /// What was ever allocated.
    pub total: Amount,
}

impl<S: StackSource> Profile<S> {
    /// Passes `read` what the profile knows now, which takes no memory beyond that of `read`.
    ///
    /// What `read` allocates is not recorded, if the calling thread allocates it from a profiled allocator.
    pub fn with_tables<T>(&'static self, read: impl FnOnce(&Tables<S>) -> T) -> T {
        unrecorded(|| {
            self.note_peak();
            read(&Tables::new(self))
        })
    }
}

impl<S: StackSource> Tables<S> {
    /// The lists as long as they are now.
    fn new(profile: &'static Profile<S>) -> Self {
        // What a row names is in its list before the row is: sites are counted first.
        let stacks = profile.stacks().stacks();
        let sites = stacks.sites().len() as u32;
        let [nodes, places] = stacks.lens();
        Self { profile, sites, nodes, places }
    }

    /// How many frames of a stack are told. A node may have more callers; sites whose stacks differ in those alone are one.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.profile.frames()
    }

    /// Every location that a stack has.
    pub fn locations(&self) -> impl Iterator<Item = Location> {
        let table = self.profile.stacks();
        (0..self.places).map(|number| table.source().locate(table.stacks().place(number)))
    }

    /// Every frame of a stack, with its caller.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        let stacks = self.profile.stacks().stacks();
        (0..self.nodes).filter_map(|number| {
            let (caller, location) = stacks.node_at(number)?;
            Some(Node { location, caller: caller.checked_sub(1) })
        })
    }

    /// Every site, in no order.
    pub fn sites(&self) -> impl Iterator<Item = Row> {
        let profile = self.profile;
        (0..self.sites).filter_map(|number| profile.own_site(number)).map(|site| {
            let (key, [live, peak, total]) = (site.key(), profile.amounts(site));
            Row {
                node: key.stack.checked_sub(1),
                origin: profile.origin(key.origin),
                class_bytes: class_bytes(key.class),
                live,
                peak,
                total,
            }
        })
    }

    /// What was allocated without being recorded.
    #[must_use]
    pub fn lost(&self) -> Amount {
        self.profile.lost()
    }
}
