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
    /// Locks that were registered while others were taken are taken too; planted: a fork does without them.
    ForkRecount = "fork-recount",
    /// The Release that pushes a block; weakened: the drainer reads old contents.
    StackPush = "stack-push",
    /// The Acquire that drains; weakened: as above.
    StackDrain = "stack-drain",
    /// The Release of an advance; weakened: a reader that has seen the new value misses the unlink.
    QsbrAdvance = "qsbr-advance",
    /// The fence between the unlink and a deferred goal; removed: a reader misses the unlink.
    QsbrNextFence = "qsbr-next-fence",
    /// A deferred goal lies one advance ahead; planted: it is the present, and reached too early.
    QsbrNextStep = "qsbr-next-step",
    /// The fence after attaching; removed: the scan misses the reader, and the reader the unlink.
    QsbrAttachFence = "qsbr-attach-fence",
    /// The fence after a quiescent state; removed: a reader misses the unlink before a deferred goal.
    QsbrQuiescentFence = "qsbr-quiescent-fence",
    /// The Release of a quiescent state; weakened: the free overtakes the reader's last reads.
    QsbrQuiescent = "qsbr-quiescent",
    /// The Release of a detach; weakened: as above.
    QsbrDetach = "qsbr-detach",
    /// The fence of a scan; removed: the scan misses a reader that the unlink did not reach.
    QsbrScanFence = "qsbr-scan-fence",
    /// A scan reads the write sequence before its fence; planted: after it, and the fence brings no unlink along.
    QsbrScanOrder = "qsbr-scan-order",
    /// The Acquire with which a scan reads a slot; weakened: the free overtakes a reader's last reads.
    QsbrScan = "qsbr-scan",
    /// The Release that raises the read sequence; weakened: another reclaimer's free overtakes a reader's last reads.
    QsbrRaise = "qsbr-raise",
    /// The Acquire that reads the read sequence; weakened: as above.
    QsbrReached = "qsbr-reached",
    /// The Acquire with which a scan learns that another one was quicker; weakened: as above.
    QsbrOutrun = "qsbr-outrun",
    /// The read sequence only rises; planted: a late scan lowers it.
    QsbrMonotonic = "qsbr-monotonic",
    /// The Release that links a new chunk of slots; weakened: a scan reads unwritten slots.
    QsbrGrow = "qsbr-grow",
    /// The Acquire that follows the link; weakened: as above.
    QsbrFollow = "qsbr-follow",
    /// The Acquire with which a registration learns that another one has linked its chunk; weakened: as above.
    QsbrGrowLost = "qsbr-grow-lost",
    /// A dropped participant leaves its slot offline; planted: its last value holds back every goal.
    QsbrLeave = "qsbr-leave",
    /// Sequences are compared by their difference; planted: by size, which is wrong after the wrap.
    QsbrWrap = "qsbr-wrap",
    /// The Acquire that takes a slot over; weakened: its next owner sees the last one's sequence.
    QsbrOwn = "qsbr-own",
    /// The Release that gives a slot up; weakened: as above.
    QsbrDisown = "qsbr-disown",
    /// The Release that hands a queue over; weakened: the taker misses its items.
    QueueGive = "queue-give",
    /// The Acquire that takes queues; weakened: as above.
    QueueTake = "queue-take",
    /// Queues with unreached goals go back; planted: their items are lost.
    QueueReturn = "queue-return",
    /// The Release that links an entry to its bucket; weakened: a finder reads an entry before it was written.
    InternerLink = "interner-link",
    /// The Acquire that reads a bucket; weakened: as above.
    InternerFind = "interner-find",
    /// The Release that links an entry to the list of all; weakened: a walk reads an entry before it was written.
    InternerList = "interner-list",
    /// The Acquire that begins a walk; weakened: as above.
    InternerWalk = "interner-walk",
    /// The Release that offers idle memory; weakened: it is given back under its owner's last access.
    IdleOffer = "idle-offer",
    /// The Acquire that ends a period; weakened: as above.
    IdleAge = "idle-age",
    /// The fence between an offer and the look for a keeper; removed: memory waits and nobody is awake.
    IdleOfferFence = "idle-offer-fence",
    /// The fence between going to sleep and the last look; removed: as above.
    IdleRestFence = "idle-rest-fence",
    /// Which words are in use is looked up after that fence; planted: before, and a word that comes into use waits for ever.
    IdleRestOrder = "idle-rest-order",
    /// The Release that puts a block into a magazine; weakened: a forked child finds a block there that is still in use.
    MagazinePush = "magazine-push",
    /// The Acquire that counts a magazine's blocks; weakened: as above.
    MagazineList = "magazine-list",
    /// The fence after a block was taken; removed: a forked child finds a block both in use and in the magazine.
    MagazinePop = "magazine-pop",
    /// The fence after the mark of who goes in; removed: the one who closes misses the mark, and the caller the sign.
    PassageEnter = "passage-enter",
    /// The fence after the passage was said to close; removed: as above, and the sign is taken back.
    PassageClose = "passage-close",
    /// The fence after the sign; removed: as above.
    PassageSign = "passage-sign",
    /// Who is inside is waited for; planted: others go in meanwhile.
    PassageWait = "passage-wait",
    /// The Release of who goes out; weakened: others miss what it did inside.
    PassageLeave = "passage-leave",
    /// The Acquire that sees who went out; weakened: as above.
    PassageWaited = "passage-waited",
    /// The Release at the end of a close; weakened: who finds the passage closed misses what was done inside.
    PassageClosed = "passage-closed",
    /// The Acquire that finds the passage closed; weakened: as above.
    PassageSeen = "passage-seen",
}
