//! Requests to the API server, counted: a layer of the client that tells [`Requests`] of each answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::http::metrics::Requests;

/// Wraps a service, and counts its requests.
#[derive(Debug, Clone)]
pub(super) struct Counted<S> {
    inner: S,
    requests: Arc<Requests>,
}

/// Makes services that count.
pub(super) struct CountedLayer(pub(super) Arc<Requests>);

impl<S> Layer<S> for CountedLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            requests: Arc::clone(&self.0),
        }
    }
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let method = request.method().clone();
        let requests = Arc::clone(&self.requests);
        let sent = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            requests.answered(method.as_str(), code, sent.elapsed());
            answer
        })
    }
}
