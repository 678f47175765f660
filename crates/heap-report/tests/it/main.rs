//! The integration tests of `heap-report`: reports byte for byte.

#[cfg(feature = "mimalloc")]
mod mimalloc;
#[cfg(feature = "profile")]
mod profile;
#[cfg(feature = "pymalloc")]
mod pymalloc;
#[cfg(feature = "profile")]
mod stream;

use std::path::Path;

use heap_report::{Arena, Contents, Json, Pool, SizeTotals, Snapshot, Svg, Text, Totals};
use rstest::rstest;

/// Two arenas with everything that a report can show, and a name that every format must escape.
fn snapshot() -> Snapshot {
    let blocks = |size, used, capacity| Pool {
        bytes: 16_384,
        contents: Contents::Blocks { size, used, capacity },
    };
    let unused = Pool { bytes: 16_384, contents: Contents::Unused };
    let records = Pool { bytes: 16_384, contents: Contents::Records };
    let mut first = vec![records];
    first.extend((1..32).map(|class| {
        let capacity = 16_384 / (16 * class);
        blocks(16 * class, capacity * class / 31, capacity)
    }));
    let mut second = vec![records, blocks(512, 0, 32), blocks(512, 32, 32)];
    second.extend([unused; 12]);
    second.push(Pool {
        bytes: 65_536,
        contents: Contents::Blocks { size: 8192, used: 1, capacity: 8 },
    });
    Snapshot {
        name: "a \"small\" <heap> & more".into(),
        arenas: vec![
            Arena { address: 0x7f12_3450_0000, pools: first },
            Arena { address: 0x7f12_3460_0000, pools: second },
        ],
    }
}

/// With `UPDATE_GOLDEN` in the environment the files are written anew: look at them before they are committed.
#[rstest]
#[case("small.txt", Text(&snapshot()).to_string())]
#[case("small.json", Json(&snapshot()).to_string())]
#[case("small.svg", Svg(&snapshot()).to_string())]
fn reports_are_the_golden_ones(#[case] name: &str, #[case] report: String) {
    assert_golden(name, &report);
}

fn assert_golden(name: &str, report: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, report).expect("a writable file");
    }
    let golden = std::fs::read_to_string(&golden).expect("a readable file");
    assert!(report == golden, "expected:\n{golden}\nfound:\n{report}");
}

#[test]
fn an_empty_heap_has_reports_too() {
    let empty = Snapshot::default();
    assert_eq!(
        Text(&empty).to_string(),
        ": 0 arenas, 0 pools (0 unused), 0 bytes, 0 blocks of 0 bytes\n"
    );
    assert!(Json(&empty).to_string().ends_with("\"sizes\":[],\"arenas\":[]}"));
    assert!(Svg(&empty).to_string().ends_with("</svg>\n"));
}

#[test]
fn totals_are_sums() {
    let snapshot = snapshot();
    let Totals { arenas, pools, unused_pools, bytes, .. } = snapshot.totals();
    assert_eq!((arenas, pools, unused_pools), (2, 48, 12));
    assert_eq!(bytes, 47 * 16_384 + 65_536);
    let sizes = snapshot.sizes();
    assert_eq!(sizes.len(), 33);
    assert_eq!(sizes[31], SizeTotals { size: 512, pools: 2, used: 32, capacity: 64 });
    assert!(sizes.is_sorted_by_key(|totals| totals.size));
    assert_eq!(sizes.iter().map(|totals| totals.used).sum::<usize>(), snapshot.totals().blocks);
}
