"""Prometheus metrics, named as in text-embeddings-inference where it has them."""

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The metrics of one server. Counters are gauges, as only those keep their names."""

    def __init__(self):
        """Make a registry of its own, so that servers of one process do not share it."""
        self.registry = registry = CollectorRegistry()

        def count(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=registry)

        def spread(name: str, about: str, buckets: tuple, *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=buckets, registry=registry)

        self.requests = count("te_request_count", "Requests that came", "method")
        self.successes = count("te_request_success", "Requests that were answered", "method")
        self.failures = count("te_request_failure", "Requests that were not, by error", "err")
        self.running = count("te_request_running", "Requests being answered")
        self.seconds = spread("te_request_duration", "Seconds of a request", SECONDS, "method")
        self.tokenizing = spread("te_request_tokenization_duration", "Seconds in it", SECONDS)
        self.waiting = spread("te_request_queue_duration", "Seconds in the queue", SECONDS)
        self.inference = spread(
            "te_request_inference_duration", "Seconds from its first run to its answer", SECONDS
        )
        self.queue = count("te_queue_size", "Requests that wait for a library", "model")
        self.batch_tokens = spread("te_batch_next_tokens", "Tokens of a run", TOKENS, "model")
        self.batch_size = spread("te_batch_next_size", "Requests in a run", TOKENS[:8], "model")
        self.run_seconds = spread("te_batch_duration", "Seconds of a run", SECONDS, "model")

    def queued(self, model: str, jobs: int) -> None:
        """Note how many jobs wait."""
        self.queue.labels(model).set(jobs)

    def ran(self, model: str, tokens: int, requests: int, seconds: float) -> None:
        """Note a run of a library."""
        self.batch_tokens.labels(model).observe(tokens)
        self.batch_size.labels(model).observe(requests)
        self.run_seconds.labels(model).observe(seconds)

    def computed(self, tokenizing: float, waiting: float, inference: float) -> None:
        """Note the parts of a request's time."""
        self.tokenizing.observe(tokenizing)
        self.waiting.observe(waiting)
        self.inference.observe(inference)

    def text(self) -> bytes:
        """Return all of them in the format of Prometheus."""
        return generate_latest(self.registry)
