//! Writes generated clusters to files.

use clap::Parser;
use netpolc_bench::cluster::{Format, files, shape};
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes generated clusters, each to a folder of its name. The same name gives the same bytes.
#[derive(Debug, Parser)]
struct Args {
    /// Where the folders go.
    dir: PathBuf,
    /// xs, s, sm, m, ml, l, xl, xxl, or pN for 1,000 pods with N policies; `-port` behind a name changes the port of
    /// one policy.
    #[arg(default_values = ["s", "m", "ml", "l", "p10", "p100", "p1000", "p10000"])]
    sets: Vec<String>,
    /// JSON instead of YAML; the folders' names end in `-json`.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone, there is no one to tell.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let format = if args.json { Format::Json } else { Format::Yaml };
    for set in &args.sets {
        let shape = shape(set).ok_or_else(|| io::Error::other(format!("there is no set {set}")))?;
        let folder = args.dir.join(if args.json { format!("{set}-json") } else { set.clone() });
        fs::create_dir_all(&folder)?;
        let mut bytes = 0;
        for (name, text) in files(shape, format) {
            bytes += text.len();
            fs::write(folder.join(name), text)?;
        }
        writeln!(io::stdout(), "{}: {shape:?}, {bytes} bytes", folder.display())?;
    }
    Ok(())
}
