//! The proof of all artifacts of a bundle, by one thread or by several.

use crate::machines::{MachinesError, both_of_ebpf, ebpf, iptables, nftables};
use netpolc_bundle::bpf::Pair;
use netpolc_bundle::{Artifact, ReadBack, ipt, nft};
use netpolc_frontend::model::Model;
use netpolc_frontend::reference::SetReference;
use netpolc_ir::proof::{self, Packet, Proof, Reference, Share, Witness, prove_share};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What all parts have in common is done for each of them, so more threads than this gain little.
const MOST_THREADS: usize = 4;

/// Why something is not proven.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproven {
    /// It cannot be asked.
    #[error(transparent)]
    Machine(#[from] MachinesError),
    /// This packet is judged otherwise than the policies say.
    #[error("{0:?} does not say what the policies say: {1}")]
    Otherwise(Artifact, Box<Witness>),
    /// The two programs of an artifact judge this packet differently, though they should not.
    #[error("the two programs of {0:?} do not judge alike: {1}")]
    Apart(Artifact, Packet),
}

/// Rules that several threads can make machines of; the machines themselves stay with a thread.
#[derive(Clone)]
enum Rules {
    /// Both programs.
    Ebpf(Arc<Pair>),
    Nftables(Arc<nft::Ruleset>),
    Iptables(Arc<ipt::Ruleset>),
}

/// What one thread proves at a time.
struct Part {
    artifact: Artifact,
    rules: Rules,
    share: Share,
}

impl Part {
    fn prove(self, reference: &dyn Reference, node: &str) -> Result<(Artifact, Proof), Unproven> {
        let Part { artifact, rules, share } = self;
        let prove = |machine: &mut dyn proof::Artifact| {
            let proof = prove_share(reference, machine, node, share);
            proof.map_err(|witness| Unproven::Otherwise(artifact, witness))
        };
        let proof = match rules {
            Rules::Ebpf(pair) => match both_of_ebpf(&pair)? {
                Some(mut machine) => {
                    let proof = prove(&mut machine)?;
                    machine.apart().map_or(Ok(proof), |packet| Err(Unproven::Apart(artifact, packet)))
                }
                None => {
                    prove(ebpf(&pair.cut)?.as_mut())?;
                    prove(ebpf(&pair.keep)?.as_mut())
                }
            },
            Rules::Nftables(ruleset) => prove(nftables(ruleset).as_mut()),
            Rules::Iptables(ruleset) => prove(iptables(artifact, ruleset)?.as_mut()),
        };
        Ok((artifact, proof?))
    }
}

/// Everything in so many parts of each artifact.
fn split(read: ReadBack, of: usize) -> Vec<Part> {
    let mut all = Vec::new();
    all.extend(read.ebpf.map(|pair| (Artifact::Ebpf, Rules::Ebpf(Arc::new(pair)))));
    all.extend(read.nftables.map(|ruleset| (Artifact::Nftables, Rules::Nftables(Arc::new(ruleset)))));
    let both = [(Artifact::Iptables, read.iptables), (Artifact::IptablesPlain, read.iptables_plain)];
    for (artifact, ruleset) in both {
        all.extend(ruleset.map(|ruleset| (artifact, Rules::Iptables(Arc::new(ruleset)))));
    }
    let share = |(artifact, rules): (Artifact, Rules)| {
        (0..of).map(move |which| Part { artifact, rules: rules.clone(), share: Share { which, of } })
    };
    all.into_iter().flat_map(share).collect()
}

/// What became of a part, by its number.
type Done = (usize, Result<(Artifact, Proof), Unproven>);

/// Takes parts until there are no more, or one cannot be proven.
fn work(queue: &Mutex<Receiver<(usize, Part)>>, reference: &dyn Reference, node: &str, done: &Sender<Done>) {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
    while let Ok((number, part)) = next() {
        let proven = part.prove(reference, node);
        let failed = proven.is_err();
        // Who has gone does not want to know.
        if done.send((number, proven)).is_err() || failed {
            return;
        }
    }
}

/// Threads that wait for something to prove.
pub(crate) struct Helpers<'h> {
    node: &'h str,
    threads: usize,
    parts: Sender<(usize, Part)>,
    queue: &'h Mutex<Receiver<(usize, Part)>>,
    done: Sender<Done>,
    results: Receiver<Done>,
}

/// Has `threads` threads, the caller's among them, ready to prove that rules of a node say what a model says. The others
/// start while the caller makes the rules: it takes a while until a processor that has slept runs a thread. Each does first
/// what `begin` says.
pub(crate) fn with_helpers<R>(
    model: &Model,
    node: &str,
    (threads, begin): (usize, &(dyn Fn() + Sync)),
    caller: impl FnOnce(Helpers<'_>) -> R,
) -> R {
    let threads = threads.clamp(1, MOST_THREADS);
    let (parts, queue) = channel();
    let queue = Mutex::new(queue);
    let (done, results) = channel();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let (queue, done) = (&queue, done.clone());
            let helper = move || {
                begin();
                // A reference of its own, since what one remembers is not shared.
                work(queue, &SetReference::new(model), node, &done);
            };
            // One that cannot start, since there are too many already, leaves its parts to the others.
            let _ = std::thread::Builder::new().spawn_scoped(scope, helper);
        }
        caller(Helpers { node, threads, parts, queue: &queue, done, results })
    })
}

impl Helpers<'_> {
    /// Proves all artifacts; `reference` is of the model.
    ///
    /// # Errors
    /// The first that cannot be proven.
    pub(crate) fn prove(
        self,
        read: ReadBack,
        reference: &SetReference<'_>,
    ) -> Result<BTreeMap<Artifact, Proof>, Unproven> {
        let Helpers { node, threads, parts, queue, done, results } = self;
        for part in split(read, threads).into_iter().enumerate() {
            // The other end is in `queue`, as long as this is.
            let _ = parts.send(part);
        }
        drop(parts);
        work(queue, reference, node, &done);
        drop(done);
        let mut done: Vec<Done> = results.iter().collect();
        // Whichever thread was faster, the outcome is the same.
        done.sort_by_key(|(number, _)| *number);
        let mut whole: BTreeMap<usize, (Artifact, Proof)> = BTreeMap::new();
        for (number, proven) in done {
            let (artifact, proof) = proven?;
            whole.entry(number / threads).or_insert((artifact, Proof::default())).1 += proof;
        }
        // A thread that panicked has told nothing, and ends the scope.
        Ok(whole.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Labels, NodeBuilder, compile};
    use netpolc_bundle::{Backend, Bundle};
    use netpolc_frontend::model::{Model, resolve};
    use netpolc_frontend::read::read;
    use netpolc_frontend::source::Sources;
    use netpolc_ir::unit::Host;

    const NODE: &str = "alpha";

    /// Two isolated pods with an address of each family, of which one may reach the other at this port by these addresses.
    fn model(port: u16, block: &str) -> Model {
        let mut yaml = String::new();
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            yaml += &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x}}\nspec: {{nodeName: {NODE}, \
                 containers: [{{name: c, image: i}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.{i}}}, \
                 {{ip: 'fd00::1{i}'}}]}}\n---\n"
            );
        }
        yaml += &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: \
             {{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: '{block}'}}}}], ports: [{{port: {port}}}]}}]}}\n"
        );
        let mut sources = Sources::default();
        sources.add("a.yaml", yaml.into_bytes());
        let read = read(&sources);
        assert_eq!(read.diagnostics, []);
        resolve(read.objects).0
    }

    fn with<T>(
        model: &Model,
        (backends, threads): (&[Backend], usize),
        work: impl FnOnce(&mut NodeBuilder<'_>, Host) -> T,
    ) -> T {
        let compiled = compile(model, &mut |_| ()).unwrap();
        let labels = Labels::of_policies(model);
        let (host, _) = compiled.matrix.hosts.iter().next().unwrap();
        let builder = NodeBuilder::new(model, &compiled.matrix, &labels, backends.iter().copied(), None);
        work(&mut builder.on_threads(threads, &|| ()), host)
    }

    fn bundle(model: &Model, how: (&[Backend], usize)) -> Bundle {
        with(model, how, |builder, host| builder.build(host)).unwrap().bundle
    }

    /// However many threads there are, the same is compared, and what is wrong is found, whichever family it is of.
    #[test]
    fn threads_change_nothing() {
        let all = [Backend::Ebpf, Backend::Nftables, Backend::Iptables];
        for backends in [&all[..], &all[..1], &all[1..2], &all[2..]] {
            for (block, other) in [("192.0.2.0/24", "fd00:2::/64"), ("fd00:2::/64", "192.0.2.0/24")] {
                let (right, wrong) = (model(80, block), model(81, block));
                let bundle = bundle(&right, (backends, 5));
                assert_eq!(bundle, super::tests::bundle(&right, (backends, 1)), "its figures, too");
                let prove = |model: &Model| {
                    [1, 2, 5].map(|n| with(model, (backends, n), |builder, _| builder.prove(&bundle)))
                };
                let prefix = block.split('/').next().unwrap().trim_end_matches('0');
                for fault in prove(&wrong).map(Result::unwrap_err) {
                    assert!(fault.contains(prefix) && fault.contains(" 80/TCP"), "{fault}");
                }
                assert!(prove(&right).iter().all(Result::is_ok));
                assert!(prove(&model(80, other)).iter().all(Result::is_err));
            }
        }
    }
}
