//! The published record on one thread; `loom_published` shows the rest.

use pymem_sync::Published;

#[test]
fn the_last_record_is_the_published_one() {
    let published = Published::new(&1);
    assert_eq!(*published.load(), 1);
    published.store(&2);
    assert_eq!(*published.load(), 2);
    assert_eq!(format!("{published:?}"), "Published(2)");
}
