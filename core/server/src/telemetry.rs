//! What the server posts to a receiver of OpenTelemetry, where its configuration names one. The binary has it by the feature `otel`.

use valkyrie_config::{Config, ConfigError};

use crate::handlers::State;

/// What a call is answered by.
type Handler = Box<dyn valkyrie_sdk::MessageHandler>;

#[cfg(feature = "otel")]
pub(crate) use on::Telemetry;

#[cfg(feature = "otel")]
mod on {
    use std::{sync::Arc, time::Duration};

    use tracing::{Subscriber, warn};
    use tracing_subscriber::{Layer, filter::LevelFilter, registry::LookupSpan};
    use valkyrie_otel::{Exporter, Source};
    use valkyrie_sdk::{HandlerFuture, Log, MessageHandler, ServerCall, Traced};

    use super::{Config, ConfigError, Handler, State};
    use crate::{handlers, security::ToLog};

    /// How long the last post may take.
    const END: Duration = Duration::from_secs(5);

    /// An exporter, if there is to be one.
    pub(crate) struct Telemetry {
        exporter: Option<Exporter>,
        spans: bool,
    }

    /// A handler of any kind.
    struct Any(Handler);

    impl MessageHandler for Any {
        fn handle(&self, call: ServerCall) -> HandlerFuture {
            self.0.handle(call)
        }
    }

    impl Telemetry {
        /// What the configuration says.
        ///
        /// # Errors
        /// An endpoint or authorities that cannot be used.
        pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
            let log: Arc<dyn Log> = Arc::new(ToLog);
            let exporter = config.exporter(&log)?;
            Ok(Self { spans: exporter.is_some() && config.otlp_spans, exporter })
        }

        /// Takes the server's spans.
        pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> Option<impl Layer<S> + use<S>> {
            let exporter = self.exporter.as_ref().filter(|_| self.spans)?;
            Some(exporter.layer().with_filter(LevelFilter::INFO))
        }

        /// The handler, with a span for each call if they are exported.
        pub(crate) fn traced(&self, handler: Handler) -> Handler {
            if self.spans { Box::new(Traced::new(Any(handler))) } else { handler }
        }

        /// Exports the metrics of a server that is about to begin: those of its method.
        pub(crate) fn observe(&self, state: &State) {
            let Some(exporter) = &self.exporter else { return };
            let state = state.clone();
            exporter.add(Source::new(move |writer| {
                if let Some(control) = state.control.get() {
                    handlers::write_metrics(&state, control, writer);
                }
            }));
        }

        /// Posts what is there once more.
        pub(crate) async fn end(&self) {
            if let Some(exporter) = &self.exporter
                && let Err(status) = exporter.shutdown(END).await
            {
                warn!(why = status.message(), "the last metrics were not exported");
            }
        }
    }
}

#[cfg(not(feature = "otel"))]
pub(crate) struct Telemetry;

#[cfg(not(feature = "otel"))]
impl Telemetry {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let log: std::sync::Arc<dyn valkyrie_sdk::Log> = std::sync::Arc::new(crate::security::ToLog);
        config.otlp(&log).map(|()| Self)
    }

    pub(crate) fn layer(&self) -> Option<tracing_subscriber::layer::Identity> {
        None
    }

    pub(crate) fn traced(&self, handler: Handler) -> Handler {
        handler
    }

    pub(crate) fn observe(&self, _: &State) {}

    pub(crate) async fn end(&self) {}
}
