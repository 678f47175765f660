//! Owns the profile of a process: who holds its memory, from the first call of the three domains on or from when it was asked for;
//! and the files that get it. Without a request there is none. Leaves the stacks to `python_stacks.rs`.
//!
//! A file is written when the program is over, when the process ends by `_exit`, and after a SIGUSR1. SIGUSR2 stops the recording, and
//! lets it go on. A forked child goes on with what it inherits, and writes a file of its own.

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr::NonNull;
use std::sync::OnceLock;

use heap_profile::{
    ExactProfiler, NotedProfiler, Notes, Options, Pools, Profile, SampledProfiler, Stack, Tracker,
};
use heap_report::profile::{Mode, ProfileFile, ReportFormat, stream};
use malloc_api::{Malloc, NewFile, immortal};
use pymem_domains::{AllocatorRecord, Build, Domain, Domains};
use pymem_sync::{ForkLock, Rank, RawLock, hold_over_forks};

use crate::host::hooks;
use crate::host::python::Host;
use crate::host::python_stacks::{self, PythonStacks};
use crate::observe::apart;
use crate::observe::moments::{self, Attentive, Moment};
use crate::observe::profile_request::ProfileRequest;
use crate::observe::writer::{self, Writer};
use crate::request::refusal::Refusal;

/// The profile of this process.
#[derive(Debug)]
pub(crate) struct ProcessProfile {
    profile: &'static Profile<PythonStacks>,
    /// What extensions report of memory of their own.
    tracker: Tracker<PythonStacks>,
    request: ProfileRequest,
    /// Copies of the profilers of the domains, of those whose blocks have no headers.
    profilers: [OnceLock<DomainProfiler>; 3],
}

/// A profiler of a domain whose blocks have no headers.
#[derive(Debug)]
enum DomainProfiler {
    Noted(NotedProfiler<AllocatorRecord, PythonStacks>),
    Sampled(SampledProfiler<AllocatorRecord, PythonStacks>),
}

/// Where an exact profile notes the blocks of a domain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotedIn {
    /// Beside the pools, for those that lie in one; and the domains whose pools they are, with the pools' own record, but for those of a
    /// heap that is drawn.
    Pools(&'static Notes, Option<(Domains, AllocatorRecord)>),
    /// In a header in front of each block: nobody else looks at the block's start, and whoever frees the block does so by the
    /// profiled record.
    Headers,
    /// In a table by address.
    Table,
}

impl NotedIn {
    /// Beside `pools`, which are those of the domains in `own`; `None` without memory.
    pub(crate) fn pools(
        pools: &'static dyn Pools,
        own: Option<(Domains, AllocatorRecord)>,
    ) -> Option<Self> {
        let notes = Notes::new(pools)?;
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, notes.lock())));
        Some(Self::Pools(notes, own))
    }
}

static RUNNING: OnceLock<ProcessProfile> = OnceLock::new();

/// Buckets for the few stacks and sites of a sampled profile.
const SAMPLED_BUCKETS: usize = 1 << 13;

static WRITER: Writer = Writer::new();

/// The profile of this process, if there is one.
pub(crate) fn running() -> Option<&'static ProcessProfile> {
    RUNNING.get()
}

/// Starts the profile of this process, which records from now on what its profilers pass on; `serialized` while calls of mem and obj do not
/// overlap, until it is [told](share) that they do.
///
/// # Errors
///
/// [`Refusal`]: the file cannot be written, or the interpreter does not tell its frames.
pub(crate) fn start(
    host: &Host,
    mut request: ProfileRequest,
    serialized: bool,
) -> Result<&'static ProcessProfile, Refusal> {
    if host.build == Build::FreeThreaded {
        return Err(Refusal::ProfileFreeThreaded);
    }
    request.path = writer::place(&request.path).map_err(Refusal::ProfileFile)?;
    let mut options = Options { frames: request.frames, serialized, ..Options::default() };
    if request.interval.is_some() {
        options.buckets = SAMPLED_BUCKETS;
    }
    let stacks =
        python_stacks::table(host, options, request.native).map_err(Refusal::ProfileMemory)?;
    let stacks = stacks.ok_or(Refusal::ProfileFrames)?;
    let profile = Profile::with_stacks(stacks, options).map_err(Refusal::ProfileMemory)?;
    let tracker = Tracker::new(profile, request.interval.unwrap_or(0));
    let running = RUNNING.get_or_init(|| ProcessProfile {
        profile,
        tracker,
        request,
        profilers: [const { OnceLock::new() }; 3],
    });
    WRITER.begin();
    WRITER.follow_forks();
    // Of one rank, the locks that are added last are taken first. Without memory for the handlers a child may find a lock
    // held, as without these calls.
    let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, profile)));
    let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, running.tracker.lock())));
    moments::at(Moment::End, write_the_end).map_err(Refusal::ProfileFile)?;
    moments::at(Moment::User1, write).map_err(Refusal::ProfileFile)?;
    moments::at(Moment::User2, toggle).map_err(Refusal::ProfileFile)?;
    Ok(running)
}

/// Starts the profile of a running interpreter, with its mem and obj domains alone: other threads may be in raw now.
///
/// # Errors
///
/// As [`start`].
///
/// # Safety
///
/// 1. The calling thread holds the one GIL of `host`.
pub(crate) unsafe fn start_late(
    host: &Host,
    request: ProfileRequest,
    noted_in: NotedIn,
    serialized: bool,
) -> Result<(), Refusal> {
    // When `tracemalloc` stops, it puts back the records of before its start, in which the profile would not be.
    // SAFETY: 1: by duty 1.
    if !host.is_initialized() || unsafe { hooks::is_tracing() } {
        return Err(Refusal::TooLate);
    }
    let running = start(host, request, serialized)?;
    for domain in [Domain::Mem, Domain::Obj] {
        let Some(own) = host.own_record(domain) else { continue };
        let record = running.profiled(domain, own, noted_in);
        // SAFETY: 1: its blocks are the old record's. 2: by duty 1 no other thread is in these domains.
        unsafe { host.set_allocator(domain, record.to_c()) };
    }
    Ok(())
}

impl ProcessProfile {
    /// The record of `inner`, whose blocks are noted as those of `domain`; those of an exact profile in `noted_in`.
    pub(crate) fn profiled(
        &self,
        domain: Domain,
        inner: AllocatorRecord,
        noted_in: NotedIn,
    ) -> AllocatorRecord {
        if let Some(record) = self.apart(domain, inner, noted_in) {
            return record;
        }
        match (self.request.interval, noted_in) {
            (None, NotedIn::Headers) => {
                AllocatorRecord::leak(Attentive(ExactProfiler::new(inner, self.profile, domain)))
            }
            (None, NotedIn::Pools(notes, _)) => {
                let profiler = NotedProfiler::new(inner, self.profile, domain, notes);
                let kept = DomainProfiler::Noted(profiler.clone());
                self.keep(domain, kept, profiler.lock());
                record(domain, profiler)
            }
            (interval, _) => {
                let interval = interval.unwrap_or(0);
                let profiler = SampledProfiler::new(inner, self.profile, domain, interval);
                let kept = DomainProfiler::Sampled(profiler.clone());
                self.keep(domain, kept, profiler.lock());
                record(domain, profiler)
            }
        }
    }

    /// As [`profiled`](Self::profiled), of a sampled profile over the pools themselves.
    fn apart(
        &self,
        domain: Domain,
        inner: AllocatorRecord,
        noted_in: NotedIn,
    ) -> Option<AllocatorRecord> {
        let NotedIn::Pools(_, Some((domains, pools))) = noted_in else { return None };
        if inner != pools {
            return None;
        }
        let interval = NonZeroU64::new(self.request.interval?)?;
        apart::profiled(domains, domain, inner, self.profile, interval)
    }

    /// Keeps a domain's profiler for whoever asks of a block, and holds its lock over forks.
    fn keep(&self, domain: Domain, profiler: DomainProfiler, lock: &'static RawLock) {
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, lock)));
        let _ = self.profilers[domain.index()].set(profiler);
    }

    /// The stack that allocated the live block at `block`; `None` where no block that the profile knows begins.
    pub(crate) fn traceback_of(&self, block: NonNull<u8>) -> Option<Stack> {
        let mut known = self.profilers.iter().filter_map(OnceLock::get);
        let known = known.find_map(|profiler| match profiler {
            DomainProfiler::Noted(profiler) => profiler.traceback_of(block),
            DomainProfiler::Sampled(profiler) => profiler.traceback_of(block),
        });
        known.or_else(|| apart::traceback_of(block))
    }

    /// What extensions report of memory of their own.
    pub(crate) const fn tracker(&self) -> &Tracker<PythonStacks> {
        &self.tracker
    }

    /// Records from now on, with a peak of its own, what `request` asks for; `false` if it is recorded already, as was asked for
    /// before.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: the file cannot be written, or the process records in another way.
    pub(crate) fn start_recording(&self, request: Option<ProfileRequest>) -> Result<bool, Refusal> {
        let is_new = !self.profile.is_recording();
        if let Some(request) = request {
            writer::place(&request.path).map_err(Refusal::ProfileFile)?;
            if is_new && !request.records_like(&self.request) {
                return Err(Refusal::OtherProfile);
            }
        }
        if is_new {
            self.profile.begin_peak();
        }
        self.profile.set_recording(true);
        Ok(is_new)
    }

    /// Records no longer.
    pub(crate) fn stop_recording(&self) {
        self.profile.set_recording(false);
    }

    /// Writes what is known now into the file at `path`, in the format that its name tells.
    ///
    /// # Errors
    ///
    /// What the system says about the file.
    pub(crate) fn write_into(&self, path: &Path) -> io::Result<()> {
        let mode = self.request.interval.map_or(Mode::Exact, Mode::Sampled);
        let (program, pid) = (command(), process::id());
        let mut new = NewFile::beside(path)?;
        let mut to = BufWriter::new(new.file());
        match ReportFormat::of_path(path) {
            ReportFormat::Json => {
                self.profile.with_tables(|tables| stream(tables, &program, pid, mode, &mut to))?;
            }
            format => {
                let file = ProfileFile::new(&self.profile.snapshot(), program, pid, mode);
                format.write(&file, &mut to)?;
            }
        }
        to.flush()?;
        drop(to);
        new.publish()
    }

    /// The file of this process: that of a child has the child's number.
    pub(crate) fn path(&self) -> PathBuf {
        if WRITER.is_first() {
            return self.request.path.clone();
        }
        ReportFormat::before_ending(&self.request.path, &process::id().to_string())
    }

    fn write(&self) {
        let path = self.path();
        if let Err(error) = self.write_into(&path) {
            Refusal::NoProfile { path, error }.say();
        }
    }
}

/// The record of a domain's profiler.
fn record<M: Malloc + Sync + 'static>(domain: Domain, profiler: M) -> AllocatorRecord {
    match domain {
        // Calls of raw come from threads that may not be told of a signal.
        Domain::Raw => AllocatorRecord::leak(profiler),
        Domain::Mem | Domain::Obj => AllocatorRecord::leak(Attentive(profiler)),
    }
}

/// The words of the command that runs here.
fn command() -> Vec<String> {
    let line = fs::read("/proc/self/cmdline").unwrap_or_default();
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Writes the file of this process.
fn write() {
    if let Some(running) = running().filter(|_| WRITER.is_current()) {
        running.write();
    }
}

/// From now on interpreters may run side by side.
pub(crate) fn share() {
    if let Some(running) = running() {
        running.profile.share();
    }
}

/// Whether this process has its last file still to write.
pub(crate) fn is_due() -> bool {
    WRITER.is_due()
}

/// Writes the last file of this process, once.
pub(crate) fn write_the_end() {
    if WRITER.ends() {
        write();
    }
}

fn toggle() {
    if let Some(running) = running() {
        running.profile.set_recording(!running.profile.is_recording());
    }
}
