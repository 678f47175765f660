//! Writes a heap map in the format that the first argument names: `text`, `json` or `svg`.

use heap_report::{Arena, Contents, Json, Pool, Snapshot, Svg, Text};

fn main() {
    let blocks = |size, used| Contents::Blocks { size, used, capacity: 16_384 / size };
    let contents =
        [Contents::Records, blocks(16, 1000), blocks(64, 10), blocks(512, 32), Contents::Unused];
    let pools = contents.map(|contents| Pool { bytes: 16_384, contents });
    let arena = Arena { address: 0x7f00_0000_0000, pools: pools.to_vec() };
    let snapshot = Snapshot { name: "example".into(), arenas: vec![arena] };
    assert_eq!(snapshot.totals().blocks, 1042);
    match std::env::args().nth(1).as_deref() {
        Some("json") => println!("{}", Json(&snapshot)),
        Some("svg") => print!("{}", Svg(&snapshot)),
        _ => print!("{}", Text(&snapshot)),
    }
}
