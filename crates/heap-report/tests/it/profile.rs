//! Profiles: the file is read as it was written, and what is drawn of it says the same.

use std::io::Read as _;

use heap_profile::{Amount, Location, Site, Snapshot};
use heap_report::profile::{
    Collapsed, Html, Mode, ProfileFile, ReadError, ReportFormat, Row, Speedscope, Table, Which,
};
use malloc_api::Domain;
use malloc_api::testing::assert_reviewed;
use rstest::rstest;

fn location(function: &str, line: u32) -> Location {
    Location { function: function.into(), file: "app.py".into(), line }
}

/// A site; its stack innermost first.
fn site(stack: &[(&str, u32)], domain: Domain, [live, peak, total]: [u64; 3]) -> Site {
    let amount = |bytes| Amount { bytes, blocks: bytes / 10 };
    Site {
        stack: stack.iter().map(|&(function, line)| location(function, line).into()).collect(),
        origin: domain.into(),
        class_bytes: 64,
        live: amount(live),
        peak: amount(peak),
        total: amount(total),
    }
}

fn file() -> ProfileFile {
    let sites = vec![
        site(&[("load", 7), ("main", 3)], Domain::Obj, [2_000_000, 3_000_000, 9_000_000]),
        site(&[("load", 7), ("main", 4)], Domain::Obj, [500, 600, 700]),
        site(&[("a;b", 9), ("main", 3)], Domain::Mem, [0, 4_000, 5_000]),
        site(&[], Domain::Raw, [30, 30, 30]),
    ];
    let snapshot = Snapshot { sites, lost: Amount::default() };
    ProfileFile::new(&snapshot, vec!["app.py".into(), "--all".into()], 17, Mode::Exact)
}

fn written(file: &ProfileFile) -> String {
    let mut bytes = Vec::new();
    file.write(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_file_is_read_as_it_was_written_and_has_each_frame_once() {
    let text = written(&file());
    assert_eq!(ProfileFile::read(text.as_bytes()).unwrap(), file());
    assert_eq!(text.matches("\"load\"").count(), 1);
    assert!(text.starts_with("{\"format\":\"pymem-profile\",\"version\":1,"), "{text}");
}

#[rstest]
#[case::nothing("", "this is no profile")]
#[case::no_json("PK\u{3}", "this is no profile")]
#[case::foreign("{\"format\":\"speedscope\",\"version\":1}", "`speedscope` version 1")]
#[case::newer("{\"format\":\"pymem-profile\",\"version\":2}", "`pymem-profile` version 2")]
fn what_is_no_profile_is_refused_in_one_sentence(#[case] text: &str, #[case] says: &str) {
    let error = ProfileFile::read(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(says) && !error.contains('\n'), "{error}");
}

#[test]
fn a_profile_that_is_cut_anywhere_is_refused() {
    let text = written(&file());
    for len in 0..text.len() {
        assert!(ProfileFile::read(&text.as_bytes()[..len]).is_err(), "cut to {len} bytes");
    }
}

#[rstest]
#[case::frame("[0,null]", "[9,null]", "frame 9")]
#[case::caller("[1,0]", "[1,5]", "caller 5")]
#[case::its_own_caller("[1,0]", "[1,1]", "caller 1")]
#[case::node("[1,\"obj\"", "[99,\"obj\"", "node 99")]
fn a_number_that_refers_to_nothing_is_refused(
    #[case] right: &str,
    #[case] wrong: &str,
    #[case] says: &str,
) {
    let text = written(&file());
    assert!(text.contains(right), "{text}");
    let error = ProfileFile::read(text.replacen(right, wrong, 1).as_bytes()).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn every_error_is_as_it_was_reviewed() {
    let json = ProfileFile::read(&b""[..]).unwrap_err();
    let folder = std::fs::File::open(".").unwrap();
    let io = ProfileFile::read(folder).unwrap_err();
    let format = ReadError::Format { format: "speedscope".into(), version: 2 };
    let name = "picture".parse::<ReportFormat>().unwrap_err();
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("heap_report::ReadError::Io", &io),
            ("heap_report::ReadError::Json", &json),
            ("heap_report::ReadError::Format", &format),
            ("heap_report::ReadError::Damaged", &ReadError::Damaged { what: "frame", number: 9 }),
            ("heap_report::FormatError", &name),
        ],
    );
}

#[test]
fn a_row_has_the_stack_and_the_amounts_of_its_site() {
    let file = file();
    let rows: Vec<Row<'_>> = file.rows().collect();
    let stack: Vec<_> = rows[0].stack().collect();
    assert_eq!(stack, [("load", "app.py", 7), ("main", "app.py", 3)]);
    let bytes = Which::ALL.map(|which| rows[0].amount(which).bytes);
    assert_eq!((bytes, rows[0].class_bytes()), ([2_000_000, 3_000_000, 9_000_000], 64));
    assert_eq!((rows[3].domain(), rows[3].stack().count()), ("raw", 0));
}

#[test]
fn collapsed_stacks_are_outermost_first() {
    let live = "\
main (app.py:3);load (app.py:7) 2000000
main (app.py:4);load (app.py:7) 500
(no frame) 30
";
    assert_eq!(Collapsed(&file(), Which::Live).to_string(), live);
    let peak = Collapsed(&file(), Which::Peak).to_string();
    assert!(peak.contains("main (app.py:3);a:b (app.py:9) 4000\n"), "{peak}");
}

#[test]
fn a_speedscope_file_has_three_profiles_over_the_same_frames() {
    let text = Speedscope(&file()).to_string();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let frames = value["shared"]["frames"].as_array().unwrap();
    let live = &value["profiles"][0];
    let sample = live["samples"][0].as_array().unwrap();
    let names: Vec<_> =
        sample.iter().map(|at| &frames[at.as_u64().unwrap() as usize]["name"]).collect();
    assert_eq!(names, ["main", "load"]);
    assert_eq!(live["weights"], serde_json::json!([2_000_000, 500, 30]));
    assert_eq!(live["endValue"], 2_000_530);
    let ends: Vec<_> = (0..3).map(|at| value["profiles"][at]["endValue"].as_u64()).collect();
    assert_eq!(ends, [Some(2_000_530), Some(3_004_630), Some(9_005_730)]);
}

#[test]
fn the_table_adds_up_lines_whoever_called_them() {
    let expected = "\
app.py --all (process 17, every block)

domain            live   at the peak        in all
raw               30 B          30 B          30 B
mem                0 B       3.9 KiB       4.9 KiB
obj            1.9 MiB       2.9 MiB       8.6 MiB

        peak    blocks  most at
     2.9 MiB    300060  app.py:7 load
     3.9 KiB       400  app.py:9 a;b
        30 B         3  (no frame)

        live    blocks  most at
     1.9 MiB    200050  app.py:7 load
        30 B         3  (no frame)
";
    assert_eq!(Table { file: &file(), lines: 10 }.to_string(), expected);
    assert_eq!(Table { file: &file(), lines: 1 }.to_string().lines().count(), 12);
}

#[test]
fn a_line_is_listed_once_with_what_is_live_of_it() {
    let mut list = Vec::new();
    ReportFormat::Lines.write(&file(), &mut list).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let expected = serde_json::json!([
        ["load", "app.py", 7, 2_000_500, 200_050],
        ["(no frame)", "", 0, 30, 3]
    ]);
    assert_eq!(list, expected);
}

/// A native frame has a name and the file of its code, and no line.
#[test]
fn a_native_frame_stands_with_the_line_that_called_it_in_every_format() {
    let mut native = site(&[("scan", 0), ("load", 7), ("main", 3)], Domain::Obj, [50, 50, 50]);
    let scan = Location { function: "scan".into(), file: "/lib/_json.so".into(), line: 0 };
    let stack = native.stack.iter().skip(1).cloned();
    native.stack = std::iter::once(scan.into()).chain(stack).collect();
    let snapshot = Snapshot { sites: vec![native], lost: Amount::default() };
    let file = ProfileFile::new(&snapshot, vec![], 1, Mode::Exact);
    let drawn = |format: ReportFormat| {
        let mut bytes = Vec::new();
        format.write(&file, &mut bytes).unwrap();
        bytes
    };
    let text = |format| String::from_utf8(drawn(format)).unwrap();
    let table = text(ReportFormat::Table);
    assert!(table.ends_with("5  /lib/_json.so scan, called at app.py:7 load\n"), "{table}");
    let expected = "main (app.py:3);load (app.py:7);scan (/lib/_json.so) 50\n";
    assert_eq!(text(ReportFormat::Collapsed), expected);
    for format in [ReportFormat::Html, ReportFormat::Json] {
        let text = text(format);
        assert!(text.contains("[\"scan\",\"/lib/_json.so\",0]"), "{text}");
    }
    let speedscope: serde_json::Value =
        serde_json::from_str(&text(ReportFormat::Speedscope)).unwrap();
    let frames = &speedscope["shared"]["frames"];
    assert_eq!(
        frames.as_array().unwrap().iter().map(|frame| &frame["name"]).collect::<Vec<_>>(),
        ["main", "load", "scan"]
    );
    let mut pprof = Vec::new();
    flate2::read::GzDecoder::new(&*drawn(ReportFormat::Pprof)).read_to_end(&mut pprof).unwrap();
    let has = |name: &[u8]| pprof.windows(name.len()).any(|part| part == name);
    assert!(has(b"scan") && has(b"/lib/_json.so") && has(b"load") && has(b"app.py"));
}

/// A file may say anything: sites that are one after a cut, and what is drawn of sites together, hold no more than the largest number.
#[test]
fn amounts_that_are_too_large_together_are_the_largest_that_there_is() {
    let snapshot = Snapshot {
        sites: vec![site(&[("load", 7)], Domain::Obj, [50, 50, 50])],
        lost: Amount::default(),
    };
    let mut bytes = Vec::new();
    ProfileFile::new(&snapshot, vec![], 1, Mode::Exact).write(&mut bytes).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let row = &mut file["sites"][0];
    (3..9).for_each(|amount| row[amount] = u64::MAX.into());
    let row = row.clone();
    file["sites"] = [row.clone(), row].into_iter().collect();
    let twice = ProfileFile::read(file.to_string().as_bytes()).unwrap();
    file["kept"] = 1.into();
    let cut = ProfileFile::read(file.to_string().as_bytes()).unwrap();
    let live: Vec<_> = cut.rows().map(|row| row.amount(Which::Live).bytes).collect();
    assert_eq!(live, [u64::MAX]);
    assert_eq!(page(&twice).1["totals"], serde_json::json!(vec![u64::MAX; 3]));
    for format in ["table", "collapsed", "speedscope", "pprof"] {
        let format: ReportFormat = format.parse().unwrap();
        format.write(&twice, Vec::new()).unwrap();
    }
    let grown = cut.since(&twice);
    assert!(grown.rows().all(|row| row.amount(Which::Live).bytes == 0));
}

#[rstest]
#[case("a.json", ReportFormat::Json)]
#[case("a", ReportFormat::Json)]
#[case("a.speedscope.json", ReportFormat::Speedscope)]
#[case("b/a.txt", ReportFormat::Table)]
#[case("a.lines.json", ReportFormat::Lines)]
#[case("a.collapsed", ReportFormat::Collapsed)]
#[case("a.html", ReportFormat::Html)]
#[case("a.pb.gz", ReportFormat::Pprof)]
fn the_name_of_a_file_tells_its_format(#[case] name: &str, #[case] expected: ReportFormat) {
    assert_eq!(ReportFormat::of_path(std::path::Path::new(name)), expected);
}

#[test]
fn the_difference_of_two_profiles_is_what_grew() {
    let before = file();
    let same = file().since(&before);
    assert!(same.rows().all(|row| row.amount(Which::Live) == Amount::default()));
    let sites = vec![
        site(&[("load", 7), ("main", 3)], Domain::Obj, [2_000_700, 3_000_000, 9_000_000]),
        site(&[("leak", 8)], Domain::Obj, [5_000, 5_000, 5_000]),
    ];
    let snapshot = Snapshot { sites, ..Snapshot::default() };
    let after = ProfileFile::new(&snapshot, Vec::new(), 17, Mode::Exact).since(&before);
    let live: Vec<_> = after
        .rows()
        .map(|row| (row.stack().next().unwrap().0, row.amount(Which::Live).bytes))
        .collect();
    assert_eq!(live, [("leak", 5_000), ("load", 700)]);
}

/// What a page shows.
fn page(file: &ProfileFile) -> (String, serde_json::Value) {
    let page = Html(file).to_string();
    let (_, data) = page.split_once("application/json\">").unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    let data = serde_json::from_str(data).unwrap();
    (page, data)
}

#[test]
fn a_page_needs_nothing_else_and_has_all_sums() {
    let (page, data) = page(&file());
    for loads in ["src=", "<link", "@import", "fetch(", "url("] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert_eq!(data["totals"], serde_json::json!([3_004_630, 2_000_530, 9_005_730]));
    assert_eq!(data["frames"][4], serde_json::json!(["(no frame)", "", 0]));
    // Frame, caller, then the bytes at the peak, live and in all: of a box and what it calls.
    let nodes: Vec<i64> = serde_json::from_value(data["nodes"].clone()).unwrap();
    let boxes: Vec<&[i64]> = nodes.chunks(5).collect();
    assert_eq!(boxes[0], [0, -1, 3_004_000, 2_000_000, 9_005_000]);
    assert_eq!(boxes[1], [1, 0, 3_000_000, 2_000_000, 9_000_000]);
    assert_eq!((boxes.len(), data["hidden"].as_u64()), (6, Some(0)));
    let lines = data["lines"].as_array().unwrap();
    assert_eq!(
        lines[0],
        serde_json::json!([1, 3_000_600, 300_060, 2_000_500, 200_050, 9_000_700, 900_070])
    );
    assert_eq!(data["domains"][0][0], "mem");
}

#[test]
fn no_name_ends_the_page() {
    let sites = vec![site(&[("</script><script>alert(1)", 1)], Domain::Obj, [1, 1, 1])];
    let snapshot = Snapshot { sites, ..Snapshot::default() };
    let (page, data) = page(&ProfileFile::new(&snapshot, vec!["</script>".into()], 1, Mode::Exact));
    assert!(!page.contains("alert(1)</"), "a name stands in the page as it is");
    assert!(!page.contains("</script><script>alert"));
    assert_eq!(data["frames"][0][0], "</script><script>alert(1)");
}

#[test]
fn boxes_that_nobody_could_see_are_left_out() {
    let stack = |n: u32| [("leaf", n), ("middle", n / 10), ("root", n / 1_000)];
    let sites = (0..70_000).map(|n| site(&stack(n), Domain::Obj, [10, 10, 10])).collect();
    let (page, data) = page(&ProfileFile::new(
        &Snapshot { sites, ..Snapshot::default() },
        Vec::new(),
        1,
        Mode::Exact,
    ));
    let nodes: Vec<i64> = serde_json::from_value(data["nodes"].clone()).unwrap();
    assert_eq!(nodes.len(), 5 * 60_000);
    let roots = nodes.chunks(5).filter(|node| node[1] == -1);
    assert_eq!(roots.map(|root| root[2]).sum::<i64>(), 700_000, "all callers are there");
    assert_eq!(data["hidden"], 70_000 + 7_000 + 70 - 60_000);
    assert!(page.len() < 10 << 20, "{}", page.len());
}
