//! Requests whose data is spread over a cluster: their parts go their own ways, side by side, and the
//! last one that is answered answers the whole.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::context::Context;
use crate::error::Error;
use crate::request::{Answer, Request, Responder};

pub(super) enum Split {
    Whole(Request),
    Parts(Vec<Request>),
}

/// A request that waits for its parts.
struct Whole {
    request: Request,
    results: Vec<Option<Result<Answer, Error>>>,
    missing: usize,
}

struct Part {
    context: Arc<Context>,
    whole: Arc<Mutex<Whole>>,
    index: usize,
}

/// Splits a request into its parts, where it has any.
pub(super) fn split(context: &Arc<Context>, mut request: Request) -> Split {
    let Some(operations) = request.operation.split(context) else {
        return Split::Whole(request);
    };
    if operations.is_empty() {
        let result = request.operation.join(Vec::new());
        request.answer(context, result);
        return Split::Parts(Vec::new());
    }
    let (id, deadline, durability) = (request.id, request.deadline, request.durability);
    let whole = Arc::new(Mutex::new(Whole {
        request,
        results: operations.iter().map(|_| None).collect(),
        missing: operations.len(),
    }));
    let parts = operations
        .into_iter()
        .enumerate()
        .map(|(index, operation)| {
            let part = Part {
                context: context.clone(),
                whole: whole.clone(),
                index,
            };
            let mut request = Request::new(operation, deadline, Box::new(part));
            request.id = id;
            request.part = index as u32 + 1;
            request.durability = durability;
            request
        });
    Split::Parts(parts.collect())
}

impl Part {
    fn whole(&self) -> MutexGuard<'_, Whole> {
        self.whole
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Responder for Part {
    fn respond(self: Box<Self>, result: Result<Answer, Error>) {
        let mut whole = self.whole();
        whole.results[self.index] = Some(result);
        whole.missing -= 1;
        if whole.missing == 0 {
            let results = std::mem::take(&mut whole.results);
            let result = whole
                .request
                .operation
                .join(results.into_iter().flatten().collect());
            whole.request.answer(&self.context, result);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.whole().request.is_abandoned()
    }
}
