//! Records on their way to Python's `logging`. Native threads leave them with the bridge; they are handed over where a
//! thread drains completions, with the interpreter attached and nothing of this library locked.

use std::sync::{Arc, OnceLock};

use pyo3::{exceptions::PyException, prelude::*, sync::PyOnceLock, types::IntoPyDict};
use valkyrie_bridge::{Level, Listener, Queue, Record};

/// Records that one completion brings at most.
const BATCH: usize = 64;

fn listener() -> &'static Arc<Listener> {
    static LISTENER: OnceLock<Arc<Listener>> = OnceLock::new();
    LISTENER.get_or_init(Listener::new)
}

/// As `logging` counts.
fn number(level: Level) -> u8 {
    match level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug => 10,
    }
}

/// Wants what the program's logger wants now.
pub(crate) fn ask_level(py: Python<'_>) -> PyResult<()> {
    static LEVEL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let wanted: i64 = LEVEL.import(py, "valkyrie._log", "level")?.call0()?.extract()?;
    let least = Level::ALL.into_iter().rfind(|level| i64::from(number(*level)) >= wanted);
    // `logging` leaves out what it does not want; who listens once goes on.
    listener().set_level(Some(least.unwrap_or(Level::Error)));
    Ok(())
}

/// From now on `queue` is told when there are records.
pub(crate) fn listen(queue: &Arc<Queue>) {
    // A queue that is closed needs not to be told.
    let _ = listener().next(queue, BATCH);
}

/// Hands over what came by `queue` and what waits. A handler's exception is no caller's; an error is one that ends the
/// thread's work, such as Ctrl-C.
pub(crate) fn deliver(py: Python<'_>, queue: Option<&Arc<Queue>>, came: Vec<Record>) -> PyResult<()> {
    let mut records = came;
    records.append(&mut listener().take());
    if records.is_empty() {
        return Ok(());
    }
    // Whoever drains is there: the queue that was told before may be gone.
    if let Some(queue) = queue {
        listen(queue);
    }
    match emit(py, records) {
        Err(error) if error.is_instance_of::<PyException>(py) => error.write_unraisable(py, None),
        other => return other,
    }
    Ok(())
}

fn emit(py: Python<'_>, records: Vec<Record>) -> PyResult<()> {
    static EMIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let records = records
        .into_iter()
        .map(|record| {
            let fields = record.fields.into_iter().into_py_dict(py)?;
            Ok((number(record.level), record.target, record.message, fields))
        })
        .collect::<PyResult<Vec<_>>>()?;
    EMIT.import(py, "valkyrie._log", "emit")?.call1((records,))?;
    ask_level(py)
}
