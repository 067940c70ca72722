//! All metrics as text, in the OpenMetrics format (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::{fmt, sync::Arc, time::UNIX_EPOCH};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder, NoLabelSet, text,
    },
    metrics::{exemplar::Exemplar, histogram::Histogram},
    registry::Registry,
};
use weir_common::{
    Direction,
    counters::Counter,
    layout::{LAYOUT, map},
    reason::Reason,
};

use super::{
    instruments::{Instruments, Trigger},
    observation::Observation,
    process::Process,
    register::{self, Family},
    watches::WatchReport,
};
use crate::{control::query::FlowReport, datapath::Mode, flow::json::Verdict};

/// What `/metrics` says its answer is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything, as one answer to a scrape.
///
/// # Errors
/// None that is known: text has no end.
pub fn expose(
    observation: Observation,
    flows: FlowReport,
    instruments: &Arc<Instruments>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        observation,
        flows,
        watches: instruments.watches.report(),
        process: Process::read(),
        instruments: instruments.clone(),
    }));
    let mut out = String::with_capacity(32 << 10);
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Scrape {
    observation: Observation,
    flows: FlowReport,
    watches: Vec<WatchReport>,
    process: Process,
    instruments: Arc<Instruments>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.agent(&mut page)?;
        self.policy(&mut page)?;
        self.packets(&mut page)?;
        self.maps(&mut page)?;
        self.flows(&mut page)?;
        self.watches(&mut page)?;
        self.process(&mut page)
    }
}

impl Scrape {
    fn agent(&self, page: &mut Page<'_>) -> fmt::Result {
        let observed = &self.observation;
        page.family(&register::BUILD, |series| {
            series.gauge(&[env!("CARGO_PKG_VERSION"), &LAYOUT.to_string()], 1_u64)
        })?;
        page.family(&register::ATTACH, |series| {
            let mode = match observed.attach {
                Mode::Tcx => "tcx",
                Mode::Tc => "tc",
            };
            series.gauge(&[mode], 1_u64)
        })?;
        page.gauge(&register::READY, u64::from(observed.ready))?;
        page.gauge(&register::AUDIT_MODE, u64::from(observed.audit))?;
        page.gauge(&register::GENERATION, u64::from(observed.generation))
    }

    fn policy(&self, page: &mut Page<'_>) -> fmt::Result {
        let observed = &self.observation;
        page.family(&register::POLICIES, |series| {
            let mut kinds = observed.policies.iter();
            kinds.try_for_each(|(kind, count)| series.gauge(&[kind], *count))
        })?;
        page.family(&register::INVALID_OBJECTS, |series| {
            let mut kinds = observed.invalid_objects.iter();
            kinds.try_for_each(|(kind, count)| series.gauge(&[kind], *count))
        })?;
        page.family(&register::PROBLEMS, |series| {
            series.gauge(&["error"], observed.errors)?;
            series.gauge(&["warning"], observed.warnings)
        })?;
        page.gauge(&register::PEERS, observed.sizes.peers)?;
        page.gauge(&register::IDENTITIES, observed.sizes.identities)?;
        page.gauge(&register::CLASSES, observed.sizes.classes)?;
        page.gauge(&register::TABLES, observed.sizes.tables)?;
        page.family(&register::ENDPOINTS, |series| {
            series.gauge(&["enforced"], observed.endpoints.enforced)?;
            series.gauge(&["closed"], observed.endpoints.closed)?;
            series.gauge(&["waiting"], observed.endpoints.waiting)
        })?;
        page.family(&register::PROGRAMMING, |series| {
            Trigger::ALL.into_iter().try_for_each(|trigger| {
                let histogram = &self.instruments.programming[trigger as usize];
                series.histogram(&[trigger.name()], histogram)
            })
        })?;
        page.counter(&register::KERNEL_FAILURES, self.instruments.kernel_failures.get())?;
        page.counter(&register::HOOKS_LOST, self.instruments.hooks_lost.get())
    }

    fn packets(&self, page: &mut Page<'_>) -> fmt::Result {
        type Value = fn(Counter) -> u64;
        let counted = &self.observation.counters.packets;
        let families: [(&Family, Value); 2] = [
            (&register::PACKETS, |counter| counter.packets),
            (&register::BYTES, |counter| counter.bytes),
        ];
        for (family, value) in families {
            page.family(family, |series| {
                // Those of which there were none too: a series that begins with its first packet hides it from `rate`.
                for reason in Reason::ALL {
                    for (direction, name) in [(Direction::Egress, "egress"), (Direction::Ingress, "ingress")] {
                        let mut counters = counted.iter();
                        let counter = counters
                            .find(|(counted, way, _)| (counted, way) == (reason, &direction))
                            .map_or_else(Counter::default, |(_, _, counter)| *counter);
                        series.counter(&[verdict(*reason).name(), reason.name(), name], value(counter))?;
                    }
                }
                Ok(())
            })?;
        }
        page.family(&register::CONNECTIONS, |series| {
            for (map, state) in [(map::CONNECTIONS, "confirmed"), (map::UNCONFIRMED, "unconfirmed")] {
                let mut maps = self.observation.maps.iter();
                if let Some(entries) = maps.find(|usage| usage.name == map).and_then(|usage| usage.entries) {
                    series.gauge(&[state], u64::from(entries))?;
                }
            }
            Ok(())
        })?;
        let sweep = self.observation.sweep.unwrap_or_default();
        page.family(&register::EVICTIONS, |series| {
            series.counter(&["confirmed"], sweep.evicted_connections)?;
            series.counter(&["unconfirmed"], sweep.evicted_unconfirmed)
        })
    }

    fn maps(&self, page: &mut Page<'_>) -> fmt::Result {
        let maps = &self.observation.maps;
        // Of the others, capacity is no number of entries.
        let counted = || maps.iter().filter_map(|map| Some((map, map.entries?)));
        page.family(&register::MAP_ENTRIES, |series| {
            counted().try_for_each(|(map, entries)| series.gauge(&[map.name], u64::from(entries)))
        })?;
        page.family(&register::MAP_CAPACITY, |series| {
            counted().try_for_each(|(map, _)| series.gauge(&[map.name], u64::from(map.capacity)))
        })?;
        page.family(&register::MAP_MEMORY, |series| {
            let mut known = maps.iter().filter_map(|map| Some((map.name, map.memory?)));
            known.try_for_each(|(name, memory)| series.gauge(&[name], memory))
        })?;
        page.gauge(&register::SHORTAGES, self.observation.shortages)
    }

    fn flows(&self, page: &mut Page<'_>) -> fmt::Result {
        let flows = &self.flows;
        page.gauge(&register::FLOW_READERS, flows.readers)?;
        page.counter(&register::FLOW_RECORDS, flows.records)?;
        page.family(&register::FLOW_LOST, |series| {
            series.counter(&["kernel"], flows.lost_events)?;
            series.counter(&["log"], flows.lost_log)?;
            series.counter(&["reader"], flows.lost_readers)
        })?;
        page.gauge(&register::FLOW_LOG_FAILING, u64::from(flows.log_error.is_some()))
    }

    fn watches(&self, page: &mut Page<'_>) -> fmt::Result {
        let watches = &self.watches;
        page.family(&register::WATCH_STALENESS, |series| {
            let mut watches = watches.iter();
            watches.try_for_each(|watch| series.gauge(&[watch.kind], watch.stale.as_secs_f64()))
        })?;
        page.family(&register::WATCH_SYNCED, |series| {
            let mut watches = watches.iter();
            watches.try_for_each(|watch| series.gauge(&[watch.kind], u64::from(watch.synced)))
        })?;
        page.family(&register::WATCH_FAILURES, |series| {
            let mut watches = watches.iter();
            watches.try_for_each(|watch| series.counter(&[watch.kind], watch.failures))
        })
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let process = &self.process;
        page.family(&register::PROCESS_CPU, |series| {
            process
                .cpu_seconds
                .map_or(Ok(()), |seconds| series.counter(&[], seconds))
        })?;
        for (family, value) in [
            (&register::PROCESS_RESIDENT, process.resident_bytes),
            (&register::PROCESS_VIRTUAL, process.virtual_bytes),
            (&register::PROCESS_FDS, process.open_fds),
            (&register::PROCESS_MAX_FDS, process.max_fds),
        ] {
            page.family(family, |series| value.map_or(Ok(()), |value| series.gauge(&[], value)))?;
        }
        let started = self.instruments.started.duration_since(UNIX_EPOCH);
        page.gauge(&register::PROCESS_START, started.unwrap_or_default().as_secs_f64())
    }
}

/// What became of the packets that are counted under a reason.
fn verdict(reason: Reason) -> Verdict {
    match reason {
        Reason::Audit => Verdict::Audit,
        reason if reason.is_drop() => Verdict::Dropped,
        _ => Verdict::Forwarded,
    }
}

/// What is being written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// Declares a metric and writes its series.
    fn family(&mut self, family: &'static Family, write: impl FnOnce(&mut Series<'_>) -> fmt::Result) -> fmt::Result {
        let help = family.help();
        let encoder = self
            .0
            .encode_descriptor(family.declared_name(), &help, None, family.kind)?;
        write(&mut Series { family, encoder })
    }

    /// A gauge without labels.
    fn gauge(&mut self, family: &'static Family, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(family, |series| series.gauge(&[], value))
    }

    /// A counter without labels.
    fn counter(&mut self, family: &'static Family, value: u64) -> fmt::Result {
        self.family(family, |series| series.counter(&[], value))
    }
}

/// The series of one metric.
struct Series<'a> {
    family: &'static Family,
    encoder: MetricEncoder<'a>,
}

impl Series<'_> {
    fn gauge(&mut self, labels: &[&str], value: impl EncodeGaugeValue) -> fmt::Result {
        self.with(labels, |encoder| encoder.encode_gauge(&value))
    }

    fn counter(&mut self, labels: &[&str], value: impl EncodeCounterValue) -> fmt::Result {
        self.with(labels, |encoder| {
            encoder.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>)
        })
    }

    fn histogram(&mut self, labels: &[&str], histogram: &Histogram) -> fmt::Result {
        let labels = self.labels(labels);
        histogram.encode(self.encoder.encode_family(&labels)?)
    }

    /// The series with these values of the metric's labels.
    fn with(&mut self, values: &[&str], encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result) -> fmt::Result {
        let labels = self.labels(values);
        if labels.is_empty() {
            encode(&mut self.encoder)
        } else {
            encode(&mut self.encoder.encode_family(&labels)?)
        }
    }

    fn labels<'v>(&self, values: &[&'v str]) -> Vec<(&'static str, &'v str)> {
        debug_assert_eq!(self.family.labels.len(), values.len(), "{}", self.family.name);
        self.family.labels.iter().copied().zip(values.iter().copied()).collect()
    }
}
