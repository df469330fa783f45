//! Repositories as a whole: which there are, and how one goes.

use std::fs;
use std::path::Path;

use gantry_oci::RepositoryName;

use crate::durable;
use crate::error::RegistryError;
use crate::store::Store;

/// A part of a sorted list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Whether more follow.
    pub more: bool,
}

impl<T: AsRef<str>> Page<T> {
    /// The entries after `after`, at most `limit` of them.
    #[must_use]
    pub fn of(sorted: Vec<T>, after: Option<&str>, limit: usize) -> Self {
        let mut rest = sorted
            .into_iter()
            .skip_while(|entry| after.is_some_and(|after| entry.as_ref() <= after));
        let entries: Vec<T> = rest.by_ref().take(limit).collect();
        Self {
            more: rest.next().is_some(),
            entries,
        }
    }
}

impl Store {
    /// All repositories that have a manifest, sorted by their names' bytes.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>, RegistryError> {
        self.walk(&|path| {
            fs::read_dir(path.join("_manifests")).is_ok_and(|mut entries| entries.next().is_some())
        })
    }

    /// All repositories that anything was ever put into.
    pub(crate) fn all_repositories(&self) -> Result<Vec<RepositoryName>, RegistryError> {
        self.walk(&|path| path.join("_manifests").is_dir() || path.join("_layers").is_dir())
    }

    fn walk(&self, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<RepositoryName>, RegistryError> {
        let root = self.repositories_path();
        let mut found = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(parent) = todo.pop() {
            for part in durable::names(&root.join(&parent))? {
                if part.starts_with('_') {
                    continue;
                }
                let name = if parent.is_empty() {
                    part
                } else {
                    format!("{parent}/{part}")
                };
                if wanted(&root.join(&name))
                    && let Ok(name) = name.parse()
                {
                    found.push(name);
                }
                todo.push(name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes a repository with all it holds. Repositories below it stay.
    pub fn delete_repository(&self, name: &RepositoryName) -> Result<(), RegistryError> {
        let _nobody_links = self.taking_away();
        if !self.has_repository(name) {
            return Err(RegistryError::NameUnknown { name: name.clone() });
        }
        let path = self.repository_path(name);
        for part in ["_tags", "_kept", "_manifests", "_referrers", "_layers"] {
            durable::remove_tree(&path.join(part))?;
        }
        // Directories that other repositories are below are not empty, and stay.
        let root = self.repositories_path();
        let mut empty = path.as_path();
        while empty != root && fs::remove_dir(empty).is_ok() {
            let Some(parent) = empty.parent() else { break };
            empty = parent;
        }
        tracing::info!(repository = %name, "repository removed");
        Ok(())
    }
}
