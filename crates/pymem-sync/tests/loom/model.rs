//! Runs one loom model, or one of its negative controls, and says how it went in words that `cargo xtask loom` reads.
#![allow(dead_code, reason = "each model uses what it needs")]

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use pymem_sync::sync::{Site, plant};

/// Chooses a control by its site's name; `list` prints the model's controls instead of running it.
const CONTROL: &str = "PYMEM_LOOM_CONTROL";

/// One model: a property, the size it is shown for, and the faults that it must reject.
pub(crate) struct Model {
    /// The name of the test function.
    pub(crate) name: &'static str,
    /// `None` is exhaustive; `Some(n)`, with n in the file's name, explores up to n preemptions.
    pub(crate) preemptions: Option<usize>,
    /// Fewer executions mean that the model was emptied.
    pub(crate) floor: usize,
    /// With any one of these faults the model must fail.
    pub(crate) controls: &'static [Site],
}

impl Model {
    /// Explores `body`. No other bound is set: a model that returns has completed.
    pub(crate) fn check(&self, body: impl Fn() + Send + Sync + 'static) {
        let control = env::var(CONTROL).ok();
        if control.as_deref() == Some("list") {
            for site in self.controls {
                println!("control {} {}", self.name, site.name());
            }
            return;
        }
        let site = control.map(|name| self.site(&name));
        plant(site);
        if let Some(site) = site {
            println!("planted {} in {}", site.name(), self.name);
        }
        let mut builder = Builder::new();
        builder.preemption_bound = self.preemptions;
        builder.max_permutations = None;
        builder.max_duration = None;
        builder.checkpoint_file = None;
        builder.max_branches = 10_000;
        let executions = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&executions);
        builder.check(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            body();
        });
        let executions = executions.load(Ordering::Relaxed);
        match self.preemptions {
            None => println!("Completed {}: {executions} executions, exhaustive", self.name),
            Some(bound) => {
                println!(
                    "Completed {}: {executions} executions, up to {bound} preemptions",
                    self.name
                );
            }
        }
        assert!(
            site.is_some() || executions >= self.floor,
            "{}: {executions} executions, expected at least {}; has the model been emptied?",
            self.name,
            self.floor
        );
    }

    fn site(&self, name: &str) -> Site {
        let found = self.controls.iter().find(|site| site.name() == name);
        *found
            .unwrap_or_else(|| panic!("{} has no control `{name}`; `list` prints them", self.name))
    }
}

/// Memory that one execution of a model shares between its threads and frees at its end.
pub(crate) struct Leak<T: 'static>(&'static T);

impl<T> Leak<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Box::leak(Box::new(value)))
    }

    pub(crate) fn get(&self) -> &'static T {
        self.0
    }

    /// Frees the value; all threads that knew it have been joined, and no borrow is left.
    pub(crate) fn free(self) {
        // SAFETY: from `Box::leak`; the models call this last.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(self.0).cast_mut()) });
    }
}

/// Plain data without any protection of its own: loom reports two accesses that are not ordered.
pub(crate) struct Plain<T>(UnsafeCell<T>);

// SAFETY: loom checks every access, which is what the models are for.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T: Copy> Plain<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn read(&self) -> T {
        // SAFETY: loom panics before the access if it races.
        self.0.with(|value| unsafe { *value })
    }

    pub(crate) fn write(&self, new: T) {
        // SAFETY: loom panics before the access if it races.
        self.0.with_mut(|value| unsafe { *value = new });
    }
}
