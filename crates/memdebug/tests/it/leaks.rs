//! The report of live blocks at exit, in children of their own: the registry is the process's.

use malloc_api::Malloc;
use memdebug::{ApiId, Host, LiveBlocks};
use rstest::rstest;

use crate::support::{Hooks, hooks_of};

#[inline(never)]
fn leaky_function(hooks: &Hooks, size: usize) {
    std::hint::black_box(hooks.malloc(size));
}

/// What a child does: leaks two blocks of mem and one of obj, and frees others.
pub(crate) fn child(options: &str) {
    let mem = hooks_of(Host::new(), ApiId::Mem, options);
    let obj = hooks_of(Host::new(), ApiId::Obj, options);
    for size in [100, 50] {
        leaky_function(&mem, size);
    }
    std::hint::black_box(obj.calloc(1, 7));
    let freed = obj.malloc(1000);
    // SAFETY: live, and not used again.
    unsafe { obj.free(freed) };
    assert_eq!(LiveBlocks::now().blocks(), 3);
    assert_eq!(LiveBlocks::now().bytes(), 157);
    // The hooks stay: what is left at exit is what they handed out.
    std::mem::forget((mem, obj));
}

#[rstest]
#[case("leaks", None)]
#[case("leaks,leak_exit=23", Some(23))]
#[case("leaks,quarantine,leak_exit=5", Some(5))]
#[case("leaks,guard=1/1,leak_exit=6", Some(6))]
fn as_text(#[case] options: &str, #[case] status: Option<i32>) {
    let output = crate::child::run(&format!("leaks:{options}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        errors,
        "memdebug: 3 blocks with 157 bytes are still live.\n\n\
         2 blocks with 150 bytes in the mem domain\n\n\
         1 blocks with 7 bytes in the obj domain\n"
    );
    assert_eq!(output.status.code(), Some(status.unwrap_or(0)));
}

#[test]
fn as_json() {
    let output = crate::child::run("leaks:leaks=json,leak_exit=9");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "{\"blocks\":3,\"bytes\":157,\"groups\":[\
         {\"domain\":\"mem\",\"blocks\":2,\"bytes\":150,\"site\":[]},\
         {\"domain\":\"obj\",\"blocks\":1,\"bytes\":7,\"site\":[]}]}\n"
    );
    assert_eq!(output.status.code(), Some(9));
}

/// With backtraces the two blocks of one line of the program are one group.
#[test]
fn by_site() {
    let output = crate::child::run("leaks:leaks,backtrace=8");
    let errors = String::from_utf8_lossy(&output.stderr);
    let groups: Vec<_> = errors.split("\n\n").skip(1).collect();
    assert_eq!(groups.len(), 2, "{errors}");
    let head =
        "2 blocks with 150 bytes in the mem domain, allocated by (most recent call first):\n  0x";
    assert!(groups[0].starts_with(head), "{errors}");
    assert!(
        groups[1].starts_with("1 blocks with 7 bytes in the obj domain, allocated by"),
        "{errors}"
    );
    let json = crate::child::run("leaks:leaks=json,backtrace=8");
    let json = String::from_utf8_lossy(&json.stderr);
    let site = "\"domain\":\"mem\",\"blocks\":2,\"bytes\":150,\"site\":[\"0x";
    assert!(json.contains(site), "{json}");
}
