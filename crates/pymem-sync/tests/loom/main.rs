//! The models of the lock-free structures, for `cargo xtask loom`: one file each, whose name says up to how many preemptions (`pb3`) where
//! that is not without end.
#![cfg(pymem_loom)]

mod cell;
mod heap;
mod model;
mod two_ways;

mod loom_fork_pb3;
mod loom_idle;
mod loom_idle_pb3;
mod loom_interner;
mod loom_lock;
mod loom_passage_pb3;
mod loom_published;
mod loom_qsbr_attach;
mod loom_qsbr_deferred;
mod loom_qsbr_detach;
mod loom_qsbr_hand_over;
mod loom_qsbr_quiescent;
mod loom_qsbr_read_seq;
mod loom_qsbr_register;
mod loom_qsbr_scan_pb3;
mod loom_qsbr_slot_reuse;
mod loom_qsbr_two_reclaimers_pb3;
mod loom_qsbr_wrap;
mod loom_rack;
mod loom_remote_stack;
mod loom_remote_stack_pb4;
