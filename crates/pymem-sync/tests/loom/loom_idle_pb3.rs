//! Idle memory is given back while its owner does not use it.

use loom::thread;
use pymem_sync::sync::Site;
use pymem_sync::{IdleUnits, Keeper};

use crate::model::{Leak, Model, Plain};

/// A unit of memory that an owner offers and takes back while two periods end.
#[test]
fn memory_is_given_back_or_kept() {
    let model = Model {
        name: "memory_is_given_back_or_kept",
        preemptions: Some(3),
        floor: 50,
        controls: &[Site::IdleOffer, Site::IdleAge, Site::LockAcquire, Site::LockRelease],
    };
    model.check(|| {
        let shared = Leak::new((IdleUnits::new(), Keeper::new(), Plain::new(1)));
        let (units, keeper, memory) = shared.get();
        let other = thread::spawn(move || {
            units.give_back(keeper, |_| memory.write(0));
            units.give_back(keeper, |_| memory.write(0));
        });
        memory.write(2);
        units.offer(1, keeper);
        let is_kept = units.take_back(1, keeper) == 1;
        assert_eq!(memory.read(), if is_kept { 2 } else { 0 });
        memory.write(3);
        other.join().unwrap();
        assert_eq!(memory.read(), 3);
        shared.free();
    });
}
