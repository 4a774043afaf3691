package serve

import (
	"errors"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/pathguard"
)

// trusted is a file, or a directory, whose content a daemon trusts.
type trusted struct{ setting, path string }

// trustedFiles returns the files of the settings that all daemons share.
func trustedFiles(s *daemon.Settings) []trusted {
	files := []trusted{
		{"--config", s.ConfigFile},
		{"--tls-cert-file", s.TLS.CertFile}, {"--tls-key-file", s.TLS.KeyFile}, {"--tls-ca-file", s.TLS.CAFile},
		{"--join-token-file", s.Join.TokenFile},
		{"--consul-token-file", s.Consul.TokenFile}, {"--consul-ca-file", s.Consul.CAFile},
		{"--consul-cert-file", s.Consul.CertFile}, {"--consul-key-file", s.Consul.KeyFile},
	}
	if s.Join.Wanted() {
		files = append(files, trusted{"--identity-dir", s.Join.Dir})
	}
	return files
}

// warnOfChangeable logs which files users other than root and the daemon's own can change
// or replace. Unlike plugins they are used: what Kubernetes mounts from
// a ConfigMap lies in a directory that every user in the container can write to.
func warnOfChangeable(log *zap.Logger, files ...trusted) {
	for _, f := range files {
		if f.path == "" {
			continue
		}
		var changeable *pathguard.Error
		// Other errors are reported by whatever reads the file.
		if err := pathguard.Check(f.path); errors.As(err, &changeable) {
			log.Warn("other users can change a file that is trusted", zap.String("setting", f.setting), zap.String("file", f.path), zap.Error(err))
		}
	}
}
