//! Owns where a replay's threads run: one that has just been woken often lies on the processor of the one that woke it.

/// Keeps the calling thread on one of the processors that it may use: the one at `number`, counted round.
#[cfg(target_os = "linux")]
pub(crate) fn stay_on(number: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&at| allowed.is_set(at)).cycle();
    if let Some(processor) = allowed.nth(number) {
        let mut own = CpuSet::new();
        own.set(processor);
        // Without the system's consent the thread runs where it likes.
        let _ = sched_setaffinity(None, &own);
    }
}

/// Keeps the calling thread where it is: this system does not say how.
#[cfg(not(target_os = "linux"))]
pub(crate) fn stay_on(_number: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::thread::sched_getaffinity;

    #[test]
    fn threads_go_round_the_processors() {
        let stays_on = |number| {
            let place = move || {
                super::stay_on(number);
                sched_getaffinity(None).unwrap()
            };
            std::thread::spawn(place).join().unwrap()
        };
        let count = sched_getaffinity(None).unwrap().count() as usize;
        let places: Vec<_> = (0..=count).map(stays_on).collect();
        assert!(places.iter().all(|place| place.count() == 1));
        assert!(places[..count].windows(2).all(|two| two[0] != two[1]));
        assert_eq!(places[0], places[count]);
    }
}
