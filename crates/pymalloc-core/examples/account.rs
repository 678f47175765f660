//! An account a tenant: what each has, a limit that some meet, and the end of everything that a tenant made.

use allocator_api2::vec::Vec;
use malloc_api::{AllocatorAdapter, Budget, Malloc};
use pymalloc_core::local_account;

fn main() {
    let tenants = ["ham", "eggs", "spam"];
    let budgets = tenants.map(|_| Budget::new(1 << 20));
    let accounts = budgets.each_ref().map(local_account);
    for (index, (name, account)) in tenants.iter().zip(&accounts).enumerate() {
        let mut orders = Vec::new_in(AllocatorAdapter::new(account));
        let mut refused = None;
        for order in 0..50_000 * index as u64 {
            if orders.try_reserve(1).is_err() {
                refused = Some(order);
                break;
            }
            orders.push(order);
        }
        let usage = account.usage();
        println!("{name}: {} bytes in {} blocks, refused {refused:?}", usage.bytes, usage.blocks);
        // What a tenant forgets ends with the account.
        orders.leak();
        assert!(account.malloc(100).is_some(), "smaller requests are served");
    }
    drop(accounts);
    assert!(budgets.iter().all(|budget| budget.held() == 0));
}
