//! The debug hooks from outside: reports, bug classes, options, and programs without a bug.

mod bugs;
mod child;
mod dump;
mod leaks;
mod plain;
mod programs;
mod quarantine;
mod sanitizer;
mod sites;
mod support;
