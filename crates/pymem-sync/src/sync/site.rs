//! Owns the list of places where a model may plant a fault: each is a negative control that its model must reject.

/// Declares [`Site`] and the names that choose a control on the command line.
macro_rules! sites {
    ($($(#[$doc:meta])+ $site:ident = $name:literal,)+) => {
        /// A place whose ordering, fence or step some model exists for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Site {
            $($(#[$doc])+ $site,)+
        }

        impl Site {
            /// Every site.
            pub const ALL: &'static [Self] = &[$(Self::$site,)+];

            /// The site's name in a control's report.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$site => $name,)+ }
            }
        }
    };
}

sites! {
    /// The Release that publishes a record; weakened: a reader sees the pointer before the contents.
    PublishedStore = "published-store",
    /// The Acquire that reads a record; weakened: as above.
    PublishedLoad = "published-load",
    /// The Acquire that takes the lock; weakened: the next owner misses the last one's writes.
    LockAcquire = "lock-acquire",
    /// The Release that gives the lock back; weakened: as above.
    LockRelease = "lock-release",
    /// The Release that pushes a block; weakened: the drainer reads old contents.
    StackPush = "stack-push",
    /// The Acquire that drains; weakened: as above.
    StackDrain = "stack-drain",
    /// The Release that abandons a stack; weakened: the adopter misses the leaver's writes.
    StackAbandon = "stack-abandon",
    /// The Acquire that adopts a stack; weakened: as above.
    StackAdopt = "stack-adopt",
    /// A push keeps the ownerless mark; planted: it wipes the mark, and nobody adopts the stack.
    StackKeepMark = "stack-keep-mark",
    /// The Release that gives a thing; weakened: the taker misses the last owner's writes.
    OwnerlessGive = "ownerless-give",
    /// The Acquire that takes a thing; weakened: as above.
    OwnerlessTake = "ownerless-take",
    /// The version that each give counts up; planted: it stays, and a stale take succeeds (ABA).
    OwnerlessVersion = "ownerless-version",
}
