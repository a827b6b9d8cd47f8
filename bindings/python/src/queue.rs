//! A queue that Python's side drains, for loops other than asyncio's.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use valkyrie_bridge::{self as bridge, ByOperation, Value};

use crate::{
    log,
    operation::{Accepted, Operation},
    values::{take_back, value_out},
};

#[pyclass(frozen, module = "valkyrie._native")]
pub(crate) struct Queue {
    queue: Arc<bridge::Queue>,
    accepted: Mutex<ByOperation<Accepted>>,
}

impl Queue {
    fn forget(&self, op: u64) -> Option<Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).remove(&op)
    }
}

#[pymethods]
impl Queue {
    #[new]
    fn new() -> PyResult<Self> {
        let queue = bridge::Queue::with_fd()?;
        log::listen(&queue);
        Ok(Self { queue, accepted: Mutex::default() })
    }

    /// Readable while there is something to drain.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.queue.fd()?)
    }

    fn submit(&self, py: Python<'_>, operation: &mut Operation) -> PyResult<u64> {
        let accepted = operation.submit(py, &self.queue)?;
        let op = accepted.op;
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(op, accepted);
        Ok(op)
    }

    /// `(op, value, error)` of each that is complete and was not abandoned; one of the two is `None`.
    fn drain(&self, py: Python<'_>) -> Vec<(u64, Option<Py<PyAny>>, Option<PyErr>)> {
        let mut taken = Vec::new();
        self.queue.drain(&mut taken, usize::MAX);
        take_back(py);
        let (mut known, mut records) = (Vec::with_capacity(taken.len()), Vec::new());
        for completion in taken {
            match completion.outcome {
                Ok(Value::Logs(more)) => records.extend(more),
                _ => known.extend(self.forget(completion.op).map(|accepted| (accepted, completion))),
            }
        }
        if let Err(error) = log::deliver(py, Some(&self.queue), records) {
            // Raised here it would lose what is complete.
            error.write_unraisable(py, None);
        }
        known
            .into_iter()
            .map(|(accepted, completion)| {
                let value = value_out(py, completion.outcome, accepted.whole);
                match value.and_then(|value| accepted.value(py, value)) {
                    Ok(value) => (accepted.op, Some(value), None),
                    Err(error) => {
                        accepted.abandon();
                        (accepted.op, None, Some(error))
                    }
                }
            })
            .collect()
    }

    /// Cancels it; it does not come out of `drain` any more.
    fn abandon(&self, op: u64) {
        if let Some(accepted) = self.forget(op) {
            accepted.abandon();
        }
    }
}

/// With the loop that it belonged to.
impl Drop for Queue {
    fn drop(&mut self) {
        self.queue.close();
    }
}
