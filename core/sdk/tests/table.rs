//! The table of a server's connections under every order in which two threads can run (loom): no connection misses the
//! end of its server.

/// What the table is made of, as the model checker wants it.
mod sync {
    pub(crate) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    };
}
#[path = "../src/table.rs"]
mod table;

use loom::{sync::Arc, thread};
use table::{Phase, Table};

#[test]
fn a_connection_that_comes_while_the_server_ends_hears_of_it() {
    loom::model(|| {
        let table = Arc::new(Table::default());
        let opens = thread::spawn({
            let table = table.clone();
            move || table.insert(7, "connection")
        });
        let told = table.enter(Phase::Stopping);
        let came_into = opens.join().unwrap();
        assert!(told == ["connection"] || came_into == Phase::Stopping, "{told:?} {came_into:?}");
        assert_eq!((table.len(), table.all()), (1, vec!["connection"]));
    });
}

#[test]
fn a_phase_never_goes_back() {
    loom::model(|| {
        let table = Arc::new(Table::default());
        let cuts = thread::spawn({
            let table = table.clone();
            move || drop(table.enter(Phase::Stopping))
        });
        drop(table.enter(Phase::Draining));
        cuts.join().unwrap();
        assert_eq!(table.insert(1, ()), Phase::Stopping);
    });
}

#[test]
fn those_that_come_and_go_at_once_are_counted() {
    loom::model(|| {
        let table = Arc::new(Table::default());
        // One shard holds both.
        let other = thread::spawn({
            let table = table.clone();
            move || {
                table.insert(1, 1);
                table.remove(1);
                table.remove(1);
            }
        });
        table.insert(9, 9);
        other.join().unwrap();
        assert_eq!((table.len(), table.all()), (1, vec![9]));
    });
}
