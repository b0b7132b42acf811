//! Tests against the running kernel. They need root or unprivileged user namespaces, `ip` and `nft`.

#[cfg(test)]
mod common;
#[cfg(test)]
mod lifetime;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod special;
