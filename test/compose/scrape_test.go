package compose_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// scrapes fetches each daemon's metrics as compose/monitoring tells Prometheus to:
// with its certificate, and by the names that it trusts.
func scrapes(t *testing.T, s *site) {
	var prometheus struct {
		Jobs []struct {
			Name string `json:"job_name"`
			DNS  []struct {
				Names []string
				Port  int
			} `json:"dns_sd_configs"`
			TLS struct {
				CA         string `json:"ca_file"`
				Cert       string `json:"cert_file"`
				Key        string `json:"key_file"`
				ServerName string `json:"server_name"`
				Insecure   bool   `json:"insecure_skip_verify"`
			} `json:"tls_config"`
		} `json:"scrape_configs"`
	}
	text, err := os.ReadFile(filepath.Join(root, "compose/monitoring/prometheus/prometheus.yaml"))
	must(t, err)
	must(t, yaml.Unmarshal(text, &prometheus))
	dir := t.TempDir()
	if out, err := s.tryCompose(t.Context(), "cp", "setup:/provision/monitoring/.", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := func(name string) string { return filepath.Join(dir, path.Base(name)) }
	for _, job := range prometheus.Jobs {
		pair, err := tls.LoadX509KeyPair(file(job.TLS.Cert), file(job.TLS.Key))
		must(t, err)
		config := &tls.Config{Certificates: []tls.Certificate{pair}, ServerName: job.TLS.ServerName, InsecureSkipVerify: job.TLS.Insecure, MinVersion: tls.VersionTLS13}
		if job.TLS.CA != "" {
			pem, err := os.ReadFile(file(job.TLS.CA))
			must(t, err)
			config.RootCAs = x509.NewCertPool()
			config.RootCAs.AppendCertsFromPEM(pem)
		}
		for _, id := range s.containers(t, job.DNS[0].Names[0]) {
			ip := s.inspect(t, id, fmt.Sprintf(`{{(index .NetworkSettings.Networks %q).IPAddress}}`, s.project+"_cluster"))
			text, err := fetch(config, net.JoinHostPort(ip, fmt.Sprint(job.DNS[0].Port)))
			if err != nil || !strings.Contains(text, "\nmuster_") {
				t.Errorf("metrics of %s: %v: %.200s", job.Name, err, text)
			}
		}
		// Without the certificate they are refused.
		config.Certificates = nil
		ip := s.inspect(t, s.containers(t, job.DNS[0].Names[0])[0], fmt.Sprintf(`{{(index .NetworkSettings.Networks %q).IPAddress}}`, s.project+"_cluster"))
		if _, err := fetch(config, net.JoinHostPort(ip, fmt.Sprint(job.DNS[0].Port))); err == nil {
			t.Errorf("metrics of %s are open to all clients", job.Name)
		}
	}
}

func fetch(config *tls.Config, address string) (string, error) {
	transport := &http.Transport{TLSClientConfig: config.Clone()}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get("https://" + address + "/metrics")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answers %s", resp.Status)
	}
	return string(b), err
}
