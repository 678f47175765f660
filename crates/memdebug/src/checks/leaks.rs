//! Owns the report of blocks that are still live: grouped by domain and allocation site, as text or JSON.
//! Leaves knowing the live blocks to `registry.rs` and `guard.rs`.

use core::fmt::{self, Write};

use crate::checks::registry::{self, LIVE};
use crate::guard::pool;
use crate::os::mapping::{MappedSlice, Zeroed};
use crate::sites::site::Site;
use malloc_api::Domain;

/// Blocks of one domain from one site.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Group {
    /// The letter.
    domain: u32,
    site: u32,
    blocks: usize,
    bytes: usize,
}

// SAFETY: 1: integers.
unsafe impl Zeroed for Group {}

impl Group {
    fn live(&self) -> Option<LiveGroup> {
        Some(LiveGroup {
            domain: Domain::from_letter(self.domain as u8)?,
            site: Site::from_bits(self.site),
            blocks: self.blocks,
            bytes: self.bytes,
        })
    }
}

/// The live blocks that all hooks with a registry have allocated since the [baseline](leaks_baseline), grouped by domain and
/// allocation site, the most bytes first.
///
/// `Display` is the text report. Blocks allocated while it is made may or may not be in it; freed blocks in a quarantine
/// are not. What is kept for it comes from the system, not from any hooks; if the system has no memory, the blocks are
/// counted all the same, in no groups.
///
/// # Examples
///
/// ```
/// use malloc_api::{LibcMalloc, Malloc};
/// use memdebug::{Domain, DebugHooks, LiveBlocks, Options};
///
/// let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&"registry".parse()?)?;
/// let block = hooks.malloc(100);
/// let live = LiveBlocks::now();
/// assert_eq!((live.blocks(), live.bytes()), (1, 100));
/// // SAFETY: live, and not used again.
/// unsafe { hooks.free(block) };
/// assert_eq!(LiveBlocks::now().blocks(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LiveBlocks {
    groups: Option<MappedSlice<Group>>,
    count: usize,
    blocks: usize,
    bytes: usize,
}

/// One line of [`LiveBlocks`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LiveGroup {
    /// The domain.
    pub domain: Domain,
    /// Where they were allocated; `None` unless backtraces are on.
    pub site: Option<Site>,
    /// How many blocks.
    pub blocks: usize,
    /// Their sizes' sum in bytes, without what the hooks add.
    pub bytes: usize,
}

impl LiveBlocks {
    /// What is live now.
    #[must_use]
    pub fn now() -> Self {
        let mut count = 0;
        let mut sum = 0;
        each(|_, _, size| (count, sum) = (count + 1, sum + size));
        // Blocks that other threads allocate meanwhile have some room.
        let Some(mut all) = MappedSlice::<Group>::new(count + count / 8 + 64) else {
            return Self { groups: None, count: 0, blocks: count, bytes: sum };
        };
        let mut blocks = 0;
        let mut bytes = 0;
        each(|domain, site, size| {
            if let Some(place) = all.get_mut(blocks) {
                *place = Group { domain: domain.letter().into(), site, blocks: 1, bytes: size };
                blocks += 1;
                bytes += size;
            }
        });
        all[..blocks].sort_unstable_by_key(|group| group.site);
        let mut last = (0, 0);
        for group in &mut all[..blocks] {
            if group.site != last.0 {
                last = (group.site, Site::to_bits(Site::from_bits(group.site).map(Site::alike)));
            }
            group.site = last.1;
        }
        all[..blocks].sort_unstable_by_key(|group| (group.domain, group.site));
        let mut count = 0_usize;
        for index in 0..blocks {
            let next = all[index];
            match count.checked_sub(1).map(|last| &mut all[last]) {
                Some(last) if (last.domain, last.site) == (next.domain, next.site) => {
                    last.blocks += next.blocks;
                    last.bytes += next.bytes;
                }
                _ => {
                    all[count] = next;
                    count += 1;
                }
            }
        }
        all[..count]
            .sort_unstable_by_key(|g| (core::cmp::Reverse((g.bytes, g.blocks)), g.domain, g.site));
        Self { groups: Some(all), count, blocks, bytes }
    }

    /// How many blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The sum of their sizes in bytes, without what the hooks add.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Leaves out the groups for which `keep` is false. Blocks that are in no group stay.
    pub fn retain(&mut self, mut keep: impl FnMut(&LiveGroup) -> bool) {
        let Some(all) = &mut self.groups else {
            return;
        };
        let before = core::mem::take(&mut self.count);
        (self.blocks, self.bytes) = (0, 0);
        for index in 0..before {
            let group = all[index];
            if group.live().is_some_and(|live| keep(&live)) {
                all[self.count] = group;
                self.count += 1;
                self.blocks += group.blocks;
                self.bytes += group.bytes;
            }
        }
    }

    /// The groups, the most bytes first.
    pub fn groups(&self) -> impl Iterator<Item = LiveGroup> {
        self.groups.iter().flat_map(|all| &all[..self.count]).filter_map(Group::live)
    }

    /// Writes the report as one line of JSON:
    /// `{"blocks":N,"bytes":N,"groups":[{"domain":"mem","blocks":N,"bytes":N,"site":["frame",..]},..]}`.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_json(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{{\"blocks\":{},\"bytes\":{},\"groups\":[", self.blocks, self.bytes)?;
        for (index, group) in self.groups().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(
                out,
                "{comma}{{\"domain\":\"{}\",\"blocks\":{},\"bytes\":{},\"site\":[",
                group.domain.name(),
                group.blocks,
                group.bytes
            )?;
            if let Some(site) = group.site {
                write!(JsonLines { out, in_line: false, any: false }, "{site}")?;
            }
            out.write_str("]}")?;
        }
        out.write_str("]}\n")
    }
}

/// Says that leaks begin here: blocks that are live now are in no [`LiveBlocks`] and in no report from now on. A program that
/// starts up with blocks that it never frees calls this at the end of its start.
///
/// A later call says so anew. Blocks that other threads allocate meanwhile may or may not count.
pub fn leaks_baseline() {
    LIVE.set_baseline();
    pool::set_baseline();
}

/// Says that the program is over: blocks that are made from now on are in no [`LiveBlocks`] and in no report. An interpreter that
/// makes blocks while it ends, which it never frees, calls this before.
pub fn leaks_end() {
    registry::end_program();
}

/// All live blocks that are no part of the baseline: domain, site, size.
fn each(mut f: impl FnMut(Domain, u32, usize)) {
    LIVE.for_each(|entry| {
        if !entry.freed && !entry.baseline {
            f(entry.owner.domain(), Site::to_bits(entry.site), entry.size);
        }
    });
    pool::for_each(|guarded| f(guarded.domain, Site::to_bits(guarded.allocated), guarded.size));
}

impl fmt::Display for LiveBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memdebug: {} blocks with {} bytes are still live.", self.blocks, self.bytes)?;
        if self.groups.is_none() {
            f.write_str("There is no memory to group them by domain and place.\n")?;
        }
        for group in self.groups() {
            write!(
                f,
                "\n{} blocks with {} bytes in the {} domain",
                group.blocks,
                group.bytes,
                group.domain.name()
            )?;
            match group.site {
                Some(site) => write!(f, ", allocated by (most recent call first):\n{site}")?,
                None => f.write_str("\n")?,
            }
        }
        Ok(())
    }
}

/// Lines of text as the elements of a JSON array.
struct JsonLines<'a> {
    out: &'a mut dyn fmt::Write,
    in_line: bool,
    any: bool,
}

impl Write for JsonLines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c == '\n' {
                if self.in_line {
                    self.out.write_char('"')?;
                }
                self.in_line = false;
                continue;
            }
            if !self.in_line {
                if c == ' ' {
                    continue;
                }
                self.out.write_str(if self.any { ",\"" } else { "\"" })?;
                (self.any, self.in_line) = (true, true);
            }
            match c {
                '"' | '\\' => write!(self.out, "\\{c}")?,
                c if u32::from(c) < 0x20 => write!(self.out, "\\u{:04x}", u32::from(c))?,
                c => self.out.write_char(c)?,
            }
        }
        Ok(())
    }
}
