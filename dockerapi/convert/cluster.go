package convert

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	clusterName = "default"

	// What holds where the cluster's settings say nothing, by the control API.
	defaultHistory   = 5
	defaultHeartbeat = 2 * time.Second
)

// ClusterSpec returns the settings of the cluster that Docker's spec asks for. What
// Docker's does not know stays as it is in current. Rotate tells whether the authority's
// root must be replaced.
func ClusterSpec(s swarm.Spec, current *musterv1.ClusterSpec) (spec *musterv1.ClusterSpec, rotate bool, err error) {
	f := &faults{}
	if s.Name != "" && s.Name != clusterName {
		f.add("Name", "swarm spec name must be %q", clusterName)
	}
	const store = "the cluster's state is in its store and not in Raft logs of managers"
	if s.Raft.SnapshotInterval != 0 {
		f.add("Raft.SnapshotInterval", store)
	}
	if value(s.Raft.KeepOldSnapshots) != 0 {
		f.add("Raft.KeepOldSnapshots", store)
	}
	if s.Raft.LogEntriesForSlowFollowers != 0 {
		f.add("Raft.LogEntriesForSlowFollowers", store)
	}
	if s.Raft.ElectionTick != 0 {
		f.add("Raft.ElectionTick", store)
	}
	if s.Raft.HeartbeatTick != 0 {
		f.add("Raft.HeartbeatTick", store)
	}
	if s.CAConfig.NodeCertExpiry != 0 {
		f.add("CAConfig.NodeCertExpiry", "it is a setting of apid: --certificate-lifetime")
	}
	if len(s.CAConfig.ExternalCAs) > 0 {
		f.add("CAConfig.ExternalCAs", "use certificates of another authority with each daemon's --tls-cert-file")
	}
	if s.CAConfig.SigningCACert != "" {
		f.add("CAConfig.SigningCACert", "the cluster makes its root itself")
	}
	if s.CAConfig.SigningCAKey != "" {
		f.add("CAConfig.SigningCAKey", "the cluster makes its root itself")
	}
	if s.EncryptionConfig.AutoLockManagers {
		f.add("EncryptionConfig.AutoLockManagers", "secrets of the store are sealed with apid's --cluster-key-file")
	}
	out := &musterv1.ClusterSpec{Labels: s.Labels, Network: current.GetNetwork()}
	if limit := s.Orchestration.TaskHistoryRetentionLimit; limit != nil {
		out.Orchestration = &musterv1.OrchestrationConfig{TaskHistoryRetentionLimit: limit}
	}
	if p := s.Dispatcher.HeartbeatPeriod; p != 0 {
		out.Dispatcher = &musterv1.DispatcherConfig{HeartbeatPeriod: duration(p)}
	}
	if d := s.TaskDefaults.LogDriver; d != nil {
		out.TaskDefaults = &musterv1.TaskDefaults{LogDriver: logDriver(d)}
	}
	return out, s.CAConfig.ForceRotate > 0, f.err()
}

// DockerClusterSpec returns the cluster's settings as Docker's spec.
func DockerClusterSpec(s *musterv1.ClusterSpec) swarm.Spec {
	history := int64(defaultHistory)
	if l := s.GetOrchestration(); l != nil && l.TaskHistoryRetentionLimit != nil {
		history = *l.TaskHistoryRetentionLimit
	}
	out := swarm.Spec{
		Annotations:   annotations(clusterName, s.GetLabels()),
		Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: &history},
		Dispatcher:    swarm.DispatcherConfig{HeartbeatPeriod: defaultHeartbeat},
	}
	if p := s.GetDispatcher().GetHeartbeatPeriod(); p != nil {
		out.Dispatcher.HeartbeatPeriod = p.AsDuration()
	}
	if d := s.GetTaskDefaults().GetLogDriver(); d != nil {
		out.TaskDefaults.LogDriver = &swarm.Driver{Name: d.Name, Options: d.Options}
	}
	return out
}

// DockerCluster returns the cluster as Docker shows it. Authority is nil in a cluster
// without one. Its trust domain tells one cluster from another.
func DockerCluster(c *musterv1.Cluster, authority *musterv1.Authority) swarm.ClusterInfo {
	out := swarm.ClusterInfo{
		ID: cmp.Or(authority.GetDomain(), c.GetId()), Meta: Meta(c.GetMeta()), Spec: DockerClusterSpec(c.GetSpec()),
		TLSInfo:                TLSInfo(authority),
		RootRotationInProgress: Rotating(authority),
		DefaultAddrPool:        []netip.Prefix{},
	}
	for _, p := range c.GetSpec().GetNetwork().GetAddressPools() {
		if base := prefix(p.Base); base.IsValid() {
			out.DefaultAddrPool = append(out.DefaultAddrPool, base)
			out.SubnetSize = p.Size
		}
	}
	return out
}

// Rotating tells whether a rotation of the root is under way.
func Rotating(a *musterv1.Authority) bool {
	return a.GetRotation() != nil && a.GetRotation().GetEndedAt() == nil
}

// TLSInfo returns which root signs.
func TLSInfo(a *musterv1.Authority) swarm.TLSInfo {
	block, _ := pem.Decode([]byte(a.GetCertificates()))
	if block == nil {
		return swarm.TLSInfo{}
	}
	out := swarm.TLSInfo{TrustRoot: string(pem.EncodeToMemory(block))}
	if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
		out.CertIssuerSubject, out.CertIssuerPublicKey = cert.RawSubject, cert.RawSubjectPublicKeyInfo
	}
	return out
}
