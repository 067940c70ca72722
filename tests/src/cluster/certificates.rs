//! The cluster's certificate authority, and a kubeconfig for each of its parts.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// Who a certificate is for.
pub struct Subject<'a> {
    /// The user, as Kubernetes reads it.
    pub common_name: &'a str,
    /// The group.
    pub organization: Option<&'a str>,
    pub hosts: &'a [&'a str],
    pub addresses: &'a [IpAddr],
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority that lives as long as the cluster is being made.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// # Errors
    /// The machine's lack of randomness.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate().context("make the key of the certificate authority")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name("weir-cluster-ca", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = parameters
            .self_signed(&key)
            .context("make the certificate authority")?
            .pem();
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            certificate,
        })
    }

    /// The authority's own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// # Errors
    /// If a host is no DNS name.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Identity> {
        let key = KeyPair::generate().context("make a key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name(subject.common_name, subject.organization);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        for host in subject.hosts {
            let host = (*host).try_into().with_context(|| format!("the DNS name {host}"))?;
            parameters.subject_alt_names.push(SanType::DnsName(host));
        }
        for address in subject.addresses {
            parameters.subject_alt_names.push(SanType::IpAddress(*address));
        }
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign the certificate of {}", subject.common_name))?
            .pem();
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// The text of a kubeconfig (JSON, which is YAML). All it needs is in it.
    #[must_use]
    pub fn kubeconfig(&self, server: &str, identity: &Identity) -> String {
        let data = |pem: &str| json!(ByteString(pem.as_bytes().to_vec()));
        let config: Value = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "weir-cluster",
            "clusters": [{"name": "weir-cluster", "cluster": {
                "server": server, "certificate-authority-data": data(&self.certificate)}}],
            "users": [{"name": "user", "user": {
                "client-certificate-data": data(&identity.certificate), "client-key-data": data(&identity.key)}}],
            "contexts": [{"name": "weir-cluster", "context": {"cluster": "weir-cluster", "user": "user"}}],
        });
        format!("{config:#}\n")
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common);
    name
}

/// The key pair that service accounts' tokens are signed with: private and public half, PEM.
///
/// # Errors
/// The machine's lack of randomness.
pub fn signing_keys() -> Result<(String, String)> {
    let key = KeyPair::generate().context("make the key of the service accounts")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Writes a file that root alone may read.
///
/// # Errors
/// The file system's.
pub fn write_secret(path: &Path, text: &str) -> Result<PathBuf> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path.to_owned())
}
