//! Real interpreters under the preload: each one that is installed, with each row of the table.
//!
//! What is not there is named and left out; with the system's python3 alone every test still runs on that.

mod command_line;
mod debugging;
mod embedding;
mod guard_pages;
mod header;
mod heap_map;
mod hostile;
mod hosts;
mod interpreters;
mod loading;
mod malloc_stats;
mod process;
mod profile;
mod raw_alloc;
mod recording;
mod reliability;
mod rows;
mod second_interpreter;
mod signals;
mod stats;
mod suite;
mod sweep;
