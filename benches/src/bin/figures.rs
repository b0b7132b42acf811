//! Times whole processes: the compiler and the loader, on generated clusters. Needs root for the loader.

use clap::{Parser, Subcommand};
use netpolc_bench::cluster::{Format, files, shape};
use netpolc_bench::random::Random;
use netpolc_bench::statistics::{median, quantile};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// The node whose share is measured.
const NODE: &str = "node-0001";

/// Times whole processes. Commands take turns in random order; what is printed are medians.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Measure.
    Run(Run),
    /// Run one command and print its wall time in s, CPU time in s and peak memory in KiB. A process of its own, so
    /// that the kernel's figures for "children" are those of one command.
    #[command(hide = true)]
    One {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The folder with the programs `netpolc` and `netpol-loader`.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// How often each command runs.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Generated clusters to compile; the loader is measured with the last one.
    #[arg(long, value_delimiter = ',', default_value = "s,m,l")]
    sets: Vec<String>,
    /// Leave the loader out.
    #[arg(long)]
    no_loader: bool,
}

/// A command and what it is called in the tables.
struct Case {
    name: String,
    command: Vec<String>,
    samples: Vec<[f64; 3]>,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Work::Run(run) => measure(&run),
        Work::One { command } => one(&command),
    };
    match result.and_then(|text| io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone, there is no one to tell.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn one(command: &[String]) -> io::Result<String> {
    let Some((program, args)) = command.split_first() else { return Err(io::Error::other("no command")) };
    let start = Instant::now();
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let wall = start.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{}: {}: {said}", command.join(" "), output.status)));
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    Ok(format!("{wall} {cpu} {}\n", usage.max_rss()))
}

/// Runs a command in a process that measures it.
fn timed(command: &[String]) -> io::Result<[f64; 3]> {
    let output = Command::new(std::env::current_exe()?).args(["one", "--"]).args(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    figures.try_into().map_err(|_| io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn measure(args: &Run) -> io::Result<String> {
    let dir = tempfile::tempdir()?;
    let mut cases = Vec::new();
    for set in &args.sets {
        for (format, folder) in [(Format::Yaml, set.clone()), (Format::Json, format!("{set}-json"))] {
            write_set(set, format, &dir.path().join(folder))?;
        }
        cases.extend(compiler_cases(args, dir.path(), set)?);
    }
    let mut random = Random::new(1);
    run_all(&mut cases, args.runs, &mut random)?;
    let mut out = table(&cases);
    out += &shares(&cases, &args.sets);
    out += &sizes(dir.path(), &args.sets)?;
    if let (false, Some(set)) = (args.no_loader, args.sets.last()) {
        out += &loader(args, dir.path(), set)?;
    }
    Ok(out)
}

fn write_set(set: &str, format: Format, folder: &Path) -> io::Result<()> {
    let shape = shape(set).ok_or_else(|| io::Error::other(format!("there is no set {set}")))?;
    fs::create_dir_all(folder)?;
    files(shape, format).into_iter().try_for_each(|(name, text)| fs::write(folder.join(name), text))
}

fn program(args: &Run, name: &str) -> io::Result<String> {
    let path = args.programs.join(name);
    let path = fs::canonicalize(&path).map_err(|e| {
        io::Error::other(format!("{}: {e}; build it with `cargo build --release`", path.display()))
    })?;
    Ok(path.display().to_string())
}

/// The compiler's commands on one set. `verify` reads what the first `build` wrote, so that must run before the rest.
fn compiler_cases(args: &Run, dir: &Path, set: &str) -> io::Result<Vec<Case>> {
    let netpolc = program(args, "netpolc")?;
    let path = |name: &str| dir.join(name).display().to_string();
    let (yaml, json) = (path(set), path(&format!("{set}-json")));
    let (out, other, single) =
        (path(&format!("{set}-out")), path(&format!("{set}-out-json")), path(&format!("{set}-one")));
    let case = |name: &str, words: &[&str]| Case {
        name: format!("{set}: {name}"),
        command: [netpolc.as_str()].iter().chain(words).map(|w| (*w).to_owned()).collect(),
        samples: Vec::new(),
    };
    let build = case("build, YAML", &["build", &yaml, "--out", &out]);
    timed(&build.command)?;
    let mut cases = vec![
        build,
        case("build, JSON", &["build", &json, "--out", &other]),
        case("check, YAML", &["check", &yaml]),
        case("check, JSON", &["check", &json]),
        case("verify, YAML", &["verify", &out, &yaml]),
    ];
    if Path::new(&out).join(NODE).exists() {
        cases.push(case("build of one node, YAML", &["build", &yaml, "--out", &single, "--node", NODE]));
    }
    Ok(cases)
}

fn run_all(cases: &mut [Case], runs: usize, random: &mut Random) -> io::Result<()> {
    for _ in 0..runs {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        random.shuffle(&mut order);
        for i in order {
            let sample = timed(&cases[i].command)?;
            cases[i].samples.push(sample);
        }
    }
    Ok(())
}

fn column(case: &Case, column: usize) -> Vec<f64> {
    case.samples.iter().map(|s| s[column]).collect()
}

fn table(cases: &[Case]) -> String {
    let mut out = String::from(
        "| command | wall s, median | wall s, fastest | CPU s | peak MiB |\n|---|---|---|---|---|\n",
    );
    for case in cases {
        let [wall, cpu, memory] = [0, 1, 2].map(|i| column(case, i));
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {} | {:.3} | {:.3} | {:.3} | {:.1} |",
            case.name,
            median(&wall),
            quantile(&wall, 0.0),
            median(&cpu),
            median(&memory) / 1024.0
        );
    }
    out
}

/// What one node costs beyond reading and checking: paired differences.
fn shares(cases: &[Case], sets: &[String]) -> String {
    let find = |name: String| cases.iter().find(|c| c.name == name);
    let mut out = String::from(
        "\nOne node beyond reading and checking the input (paired differences)\n\n| set | wall s | CPU s |\n|---|---|---|\n",
    );
    for set in sets {
        let both = find(format!("{set}: build of one node, YAML")).zip(find(format!("{set}: check, YAML")));
        let Some((build, check)) = both else { continue };
        let [wall, cpu] = [0, 1].map(|i| {
            let differences: Vec<f64> =
                column(build, i).iter().zip(column(check, i)).map(|(b, c)| b - c).collect();
            median(&differences)
        });
        let _ = writeln!(out, "| {set} | {wall:.3} | {cpu:.3} |");
    }
    out
}

/// Bytes of the bundles, by file.
fn sizes(dir: &Path, sets: &[String]) -> io::Result<String> {
    let mut out = String::from(
        "\nBytes of all bundles of a set\n\n| set | bundles | file | bytes | largest |\n|---|---|---|---|---|\n",
    );
    for set in sets {
        let (mut bundles, mut files) = (0, BTreeMap::<String, (u64, u64)>::new());
        for bundle in fs::read_dir(dir.join(format!("{set}-out")))? {
            bundles += 1;
            for file in fs::read_dir(bundle?.path())? {
                let file = file?;
                let (length, entry) =
                    (file.metadata()?.len(), files.entry(file.file_name().to_string_lossy().into_owned()));
                let (total, largest) = entry.or_default();
                *total += length;
                *largest = length.max(*largest);
            }
        }
        for (file, (total, largest)) in files {
            let _ = writeln!(out, "| {set} | {bundles} | {file} | {total} | {largest} |");
        }
    }
    Ok(out)
}

/// Loads the bundle of one node into a network namespace of our own, again, and after a policy's port was changed.
fn loader(args: &Run, dir: &Path, set: &str) -> io::Result<String> {
    let changed = format!("{set}-port");
    write_set(&changed, Format::Yaml, &dir.join(&changed))?;
    let path = |name: &str| dir.join(name).display().to_string();
    let (from, to) = (path(&format!("{set}-out")), path(&format!("{set}-port-out")));
    timed(&[program(args, "netpolc")?, "build".into(), path(&changed), "--out".into(), to.clone()])?;
    let node = changed_node(Path::new(&from), Path::new(&to))?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let loader = program(args, "netpol-loader")?;
    let apply = |dir: &str| vec![loader.clone(), "apply".to_owned(), format!("{dir}/{node}")];
    let cases = [
        ("first load", apply(&from)),
        ("again, unchanged", apply(&from)),
        ("status", vec![loader.clone(), "status".to_owned()]),
        ("one policy's port changed", apply(&to)),
        ("and back", apply(&from)),
        ("remove", vec![loader.clone(), "remove".to_owned()]),
    ];
    let mut cases = cases.map(|(name, command)| Case {
        name: format!("{set}, {node}: {name}"),
        command,
        samples: Vec::new(),
    });
    // The order is part of what is measured.
    for _ in 0..args.runs {
        for case in &mut cases {
            case.samples.push(timed(&case.command)?);
        }
    }
    Ok(format!("\nLoader\n\n{}", table(&cases)))
}

/// The first node whose script the change of one policy changes.
fn changed_node(from: &Path, to: &Path) -> io::Result<String> {
    let mut nodes: Vec<_> =
        fs::read_dir(from)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
    nodes.sort();
    for node in nodes {
        let [a, b] = [from, to].map(|dir| fs::read(dir.join(&node).join("nftables.nft")));
        if a? != b? {
            return Ok(node.to_string_lossy().into_owned());
        }
    }
    Err(io::Error::other("the changed port changes no node"))
}
