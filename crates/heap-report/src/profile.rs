//! Who held the memory: the file that a profiled program leaves, and what is drawn of it.

mod collapsed;
mod file;
mod format;
mod html;
mod lines;
mod pprof;
mod speedscope;
mod stream;
mod table;

pub use collapsed::Collapsed;
pub use file::{Mode, ProfileFile, ReadError, Row, Which};
pub use format::{FormatError, ReportFormat};
pub use html::Html;
pub use lines::Lines;
pub use speedscope::Speedscope;
pub use stream::stream;
pub use table::Table;
