//! The table of size classes, printed and compared with the one that was reviewed.

use pymalloc_core::SizeClass;

#[test]
fn the_class_table_is_the_reviewed_one() {
    let mut table = String::from("class   size  blocks in a pool  bytes of a pool  left over\n");
    for class in SizeClass::all() {
        let (size, blocks) = (class.size(), class.blocks_per_pool());
        let (index, bytes) = (class.index(), class.pool_bytes());
        let left = bytes - blocks * size;
        table += &format!("{index:5}  {size:5}  {blocks:16}  {bytes:15}  {left:9}\n");
    }
    print!("{table}");
    assert_eq!(table, include_str!("size_classes.txt"));
}
