//! Objects -> the proven bundle of one node, by the same way as `netpolc build`.

use crate::alike::{Alike, Seen};
use crate::log;
use crate::relevant::Slice;
use netpolc_bundle::{Artifact, Backend, Bundle};
use netpolc_frontend::model::resolve;
use netpolc_frontend::objects::Objects;
use netpolc_frontend::source::Sources;
use netpolc_node::{BuildError, Labels, NodeBuilder, compile as common};
use nix::sched::{sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::OnceLock;

/// Which of several backends a bundle has artifacts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// The first that can express the policies.
    First,
}

/// What a bundle has artifacts for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Wanted {
    pub backends: Vec<Backend>,
    pub which: Which,
    /// Of the two forms that rules of iptables have, the one that the loader has in force, if it is known: it takes as long
    /// to make the other as this one. A loader that refuses it gets both.
    pub form: Option<Artifact>,
}

impl Wanted {
    /// All of these.
    pub fn all(backends: &[Backend]) -> Wanted {
        Wanted { backends: backends.to_owned(), which: Which::All, form: None }
    }

    /// Whether a bundle with this has what another one would have.
    fn covers(&self, other: &Wanted) -> bool {
        self == other || (self.form.is_none() && *self == Wanted { form: None, ..other.clone() })
    }
}

/// Compiles, and remembers what the last bundle was made of. Most events of a cluster are about pods that no rule of the
/// node depends on: they lead to the same slice, and the same slice to the same bundle.
#[derive(Debug, Default)]
pub struct Compiler {
    /// Of what, and for what.
    last: Option<(Objects, Wanted)>,
    /// What was known before that: nobody should wait until it is freed.
    before: Option<(Objects, Wanted)>,
    /// What the rules can see of the pods of `last`, until [`Compiler::tidy`].
    seen: Option<Seen>,
    /// Which pods the rules cannot tell apart that are in force; since [`Compiler::tidy`].
    pub alike: Alike,
}

impl Compiler {
    /// The bundle of a node; `None` if its rules depend on nothing else than those of the last one that was made.
    ///
    /// # Errors
    /// As [`compile`]. The last bundle is then still the one that was made last.
    pub fn bundle(
        &mut self,
        slice: Slice,
        node: &str,
        wanted: &Wanted,
    ) -> Result<Option<Bundle>, BuildError> {
        let Slice { objects, sources, seen } = slice;
        // The names of the sources follow from the objects.
        if self.last.as_ref().is_some_and(|(last, had)| *last == objects && had.covers(wanted)) {
            self.seen = Some(seen);
            return Ok(None);
        }
        let bundle = match wanted.which {
            Which::All => compile(objects.clone(), &sources, node, &wanted.backends, wanted.form)?,
            Which::First => compile_for_first(&objects, &sources, node, wanted)?,
        };
        self.before = self.last.replace((objects, wanted.clone()));
        self.seen = Some(seen);
        Ok(Some(bundle))
    }

    /// What need not be done before a bundle is in force: frees what was known before it, and finds the pods that its rules
    /// cannot tell apart.
    pub fn tidy(&mut self) {
        self.before = None;
        if let (Some(seen), Some((objects, _))) = (self.seen.take(), &self.last) {
            self.alike = Alike::new(seen, objects);
        }
    }
}

/// As [`compile`], for the first of the backends that can express the policies; and why those before it could not.
fn compile_for_first(
    objects: &Objects,
    sources: &Sources,
    node: &str,
    wanted: &Wanted,
) -> Result<Bundle, BuildError> {
    let mut refused = BuildError::Bug("there is no backend to compile for".to_owned());
    for backend in &wanted.backends {
        match compile(objects.clone(), sources, node, &[*backend], wanted.form) {
            Err(error @ BuildError::Unsupported(..)) => {
                log::warn("a backend cannot express the policies", &[("error", &error)]);
                refused = error;
            }
            result => return result,
        }
    }
    Err(refused)
}

/// Compiles for one node what its rules depend on.
///
/// # Errors
/// If a backend refuses, or if we have a bug.
pub fn compile(
    objects: Objects,
    sources: &Sources,
    node: &str,
    backends: &[Backend],
    form: Option<Artifact>,
) -> Result<Bundle, BuildError> {
    let (model, _) = resolve(objects);
    let compiled = common(&model, &mut |_| ()).map_err(BuildError::Bug)?;
    let host = compiled.matrix.hosts.iter().find(|(_, h)| h.name == node).map(|(host, _)| host);
    let host = host.ok_or_else(|| BuildError::Bug(format!("there is no node {node}")))?;
    // Objects of the API have no lines; their names are in the provenance.
    let labels = Labels::new(&model, sources, false);
    // The loader has no use for the policies themselves.
    let builder = NodeBuilder::new(&model, &compiled.matrix, &labels, backends.iter().copied(), None);
    let here = sched_getcpu();
    let begin = || {
        let _ = stay_off(here);
    };
    Ok(builder.in_form(form).on_threads(threads(), &begin).build(host)?.bundle)
}

/// Keeps the calling thread off a processor, if it may run on another one. Where processors share no cache, as they seem to
/// in many virtual machines, the kernel wakes a thread on the processor of the one that woke it, whether or not another one is idle
/// (`select_idle_sibling`, kernel/sched/fair.c).
fn stay_off(processor: nix::Result<usize>) -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let mut allowed = sched_getaffinity(this)?;
    allowed.unset(processor?)?;
    // If that was the only one, the kernel refuses, and the thread runs where it did.
    sched_setaffinity(this, &allowed)
}

/// As many as may run here. It is asked once: the answer is in many files.
fn threads() -> usize {
    static FOUND: OnceLock<usize> = OnceLock::new();
    *FOUND.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpolc_bundle::limits::BPF_PORT_SETS;
    use netpolc_frontend::read::read;
    use nix::sched::CpuSet;
    use std::fmt::Write as _;

    /// A pod that takes so many pairs of ports from an address each, which are so many sets of ports.
    fn cluster(sets: usize) -> (Objects, Sources) {
        let mut yaml = String::from(
            "apiVersion: v1\nkind: Node\nmetadata: {name: n0}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: a}\n\
             spec: {nodeName: n0, containers: [{name: c, image: i}]}\nstatus: {phase: Running, podIP: 10.0.0.1}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\n\
             spec:\n  podSelector: {}\n  ingress:\n",
        );
        for i in 0..sets {
            let (port, [.., high, low]) = (2 * i + 1, i.to_be_bytes());
            writeln!(
                yaml,
                "  - {{from: [{{ipBlock: {{cidr: 198.18.{high}.{low}/32}}}}], ports: [{{port: {port}}}, {{port: {}}}]}}",
                port + 1
            )
            .unwrap();
        }
        let mut sources = Sources::default();
        sources.add("cluster.yaml", yaml.into_bytes());
        let read = read(&sources);
        assert_eq!(read.diagnostics, []);
        (read.objects, sources)
    }

    /// A thread has left the processor, if there is another one.
    #[test]
    fn a_thread_that_stays_off_a_processor() {
        let allowed = || {
            let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).filter(|n| set.is_set(*n).unwrap()).collect::<Vec<usize>>()
        };
        let before = allowed();
        let after = std::thread::spawn(move || {
            let left = stay_off(Ok(before[0])).is_ok();
            assert_eq!(left, before.len() > 1);
            assert!(!left || sched_getcpu() != Ok(before[0]));
            (before, allowed())
        });
        let (before, after) = after.join().unwrap();
        assert_eq!(after, if before.len() > 1 { before[1..].to_vec() } else { before });
    }

    #[test]
    fn of_two_forms_the_one_that_is_loaded() {
        let (objects, sources) = cluster(1);
        let slice = || Slice { objects: objects.clone(), sources: sources.clone(), seen: Seen::default() };
        let artifacts = |compiler: &mut Compiler, form| {
            let wanted = Wanted { form, ..Wanted::all(&[Backend::Iptables]) };
            let bundle = compiler.bundle(slice(), "n0", &wanted).unwrap();
            bundle.map(|bundle| bundle.manifest.artifacts.into_keys().collect::<Vec<Artifact>>())
        };
        let (sets, plain) = (Artifact::Iptables, Artifact::IptablesPlain);
        let mut compiler = Compiler::default();
        assert_eq!(artifacts(&mut compiler, None), Some(vec![sets, plain]));
        assert_eq!(artifacts(&mut compiler, Some(sets)), None);
        let mut compiler = Compiler::default();
        assert_eq!(artifacts(&mut compiler, Some(plain)), Some(vec![plain]));
        assert_eq!(artifacts(&mut compiler, Some(sets)), Some(vec![sets]));
        assert_eq!(artifacts(&mut compiler, Some(sets)), None);
        // Another loader, of which nobody knows.
        assert_eq!(artifacts(&mut compiler, None), Some(vec![sets, plain]));
    }

    #[test]
    fn auto_takes_the_next_backend_where_one_cannot_express_the_policies() {
        let (objects, sources) = cluster(BPF_PORT_SETS + 1);
        let auto = |backends: &[Backend]| {
            let wanted = Wanted { which: Which::First, ..Wanted::all(backends) };
            compile_for_first(&objects, &sources, "n0", &wanted)
        };
        let bundle = auto(&[Backend::Ebpf, Backend::Nftables]).unwrap();
        assert_eq!(bundle.manifest.backends(), [Backend::Nftables].into());
        // The one that stands alone is not replaced.
        let refused = auto(&[Backend::Ebpf]).unwrap_err();
        assert!(
            matches!(&refused, BuildError::Unsupported(Backend::Ebpf, why) if why.contains("sets of ports")),
            "{refused}"
        );
    }
}
