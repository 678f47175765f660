//! Stands where `memcheck.rs` does in a build without the feature: nothing.

use core::ptr::NonNull;

pub(super) const IS_ON: bool = false;

#[inline(always)]
pub(super) fn no_access(_start: NonNull<u8>, _size: usize) {}

#[inline(always)]
pub(super) fn undefined(_start: NonNull<u8>, _size: usize) {}

#[inline(always)]
pub(super) fn defined(_start: NonNull<u8>, _size: usize) {}

#[inline(always)]
pub(super) fn allocated(_block: NonNull<u8>, _size: usize) {}

#[inline(always)]
pub(super) fn resized(_block: NonNull<u8>, _old: usize, _new: usize) {}

#[inline(always)]
pub(super) fn freed(_block: NonNull<u8>) {}

#[inline(always)]
pub(super) fn pause_reports() {}

#[inline(always)]
pub(super) fn resume_reports() {}
