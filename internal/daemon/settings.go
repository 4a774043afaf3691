package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/tracing"
)

// EnvPrefix begins the environment variables that set flags: MUSTER_LOG_LEVEL sets
// --log-level.
const EnvPrefix = "MUSTER_"

// Settings are the settings of all daemons. Each is a flag. A setting without a flag comes
// from the environment, then from the file that --config names, then from the default.
type Settings struct {
	// ConfigFile is YAML, with the names of flags as keys.
	ConfigFile string
	// Listen is the address of the gRPC server.
	Listen string
	// Given reports whether a setting was given by flag name, and not left at its default.
	// It is nil before Load.
	Given func(flag string) bool
	// Advertise is the address at which others reach Listen. By default it is Listen, with
	// the machine's host name in place of an unspecified address.
	Advertise string
	// InsecureListen allows non-loopback addresses without TLS.
	InsecureListen bool
	// OpsListen is the address for /metrics, /healthz and /debug/pprof.
	OpsListen string
	// AllowedHosts are more host names that REST and the operations port answer to.
	AllowedHosts []string
	// Connections bound the connections of each port.
	Connections ConnectionSettings
	LogLevel    string
	// LogFormat is "console" or "json".
	LogFormat string
	// StopTimeout bounds how long an orderly end takes.
	StopTimeout time.Duration
	Prefix      string
	Consul      ConsulSettings
	TLS         TLSSettings
	Join        JoinSettings
	Tracing     tracing.Settings
}

// ConsulSettings say how to reach Consul. A daemon ignores the variables of Consul's own
// tools (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, ...) and uses its own settings only.
type ConsulSettings struct {
	Address    string
	Token      string
	TokenFile  string
	Datacenter string
	TLS        bool
	CAFile     string
	CertFile   string
	KeyFile    string
}

// TLSSettings are the credentials of every gRPC server and client of the daemon. Without
// them there is no TLS.
type TLSSettings struct {
	// CertFile and KeyFile are the daemon's own, as server and as client.
	CertFile string
	KeyFile  string
	// CAFile holds the authorities that sign peers' certificates, of clients and of
	// servers: TLS is mutual.
	CAFile string
}

// JoinSettings say how a daemon gets a certificate from the cluster's own authority. Such a
// certificate is renewed automatically.
type JoinSettings struct {
	// Addresses are the addresses of apid's gRPC server.
	Addresses []string
	// Token, or the file that holds it, is needed for the first certificate.
	Token     string
	TokenFile string
	// Dir is where the certificate and its key are stored.
	Dir string
	// Hosts are more host names for the certificate of a manager daemon.
	Hosts []string
}

// Wanted reports whether certificates come from the cluster's own authority.
func (j *JoinSettings) Wanted() bool { return len(j.Addresses) > 0 }

// ReadToken returns the join token, if there is one. The file may be missing once there is
// a certificate.
func (j *JoinSettings) ReadToken() (string, error) {
	token, err := readToken(j.Token, "join-token-file", j.TokenFile)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return token, err
}

// readToken returns a token, from a file if a flag names one.
func readToken(token, flag, path string) (string, error) {
	if path == "" {
		return token, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--%s: %w", flag, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// AddFlags adds the settings of a manager daemon to a flag set. Port is the default port of
// its gRPC server. The operations port is 1000 above.
func (s *Settings) AddFlags(fs *pflag.FlagSet, port int) {
	s.AddProcessFlags(fs, port+1000)
	s.AddTLSFlags(fs)
	fs.StringVar(&s.Join.Dir, "identity-dir", "/var/lib/muster/identity", "directory for the key and certificate that --join obtains, used by this daemon only")
	fs.StringSliceVar(&s.Join.Hosts, "certificate-host", nil, "further names and IP addresses that this daemon's certificate should be for; those of a daemon that joins must be allowed by apid (--allow-certificate-host)")
	fs.StringVar(&s.Listen, "listen", fmt.Sprintf("127.0.0.1:%d", port), "address of the gRPC server")
	fs.StringVar(&s.Advertise, "advertise", "", "address at which others reach the gRPC server (default: that of --listen)")
	s.AddStoreFlags(fs)
}

// AddStoreFlags adds the settings of the store.
func (s *Settings) AddStoreFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.Prefix, "prefix", Prefix, "prefix of all keys in the store: one Consul can hold several clusters")
	fs.StringVar(&s.Consul.Address, "consul-address", "127.0.0.1:8500", "host:port of a Consul agent's or server's HTTP API, or several with commas between, of which the first that answers is used")
	fs.StringVar(&s.Consul.Token, "consul-token", "", "Consul ACL token (better: --consul-token-file)")
	fs.StringVar(&s.Consul.TokenFile, "consul-token-file", "", "file that holds the Consul ACL token")
	fs.StringVar(&s.Consul.Datacenter, "consul-datacenter", "", "Consul datacenter (default: the agent's)")
	fs.BoolVar(&s.Consul.TLS, "consul-tls", false, "speak HTTPS with Consul")
	fs.StringVar(&s.Consul.CAFile, "consul-ca-file", "", "PEM file with the authorities that sign Consul's certificate")
	fs.StringVar(&s.Consul.CertFile, "consul-cert-file", "", "PEM file of the client certificate for Consul")
	fs.StringVar(&s.Consul.KeyFile, "consul-key-file", "", "PEM file of the client key for Consul")
}

// AddProcessFlags adds the settings of any daemon, including one that has no store and
// serves no gRPC (a worker).
func (s *Settings) AddProcessFlags(fs *pflag.FlagSet, opsPort int) {
	fs.StringVar(&s.ConfigFile, "config", "", "YAML file with further settings; keys are the names of flags")
	fs.StringVar(&s.OpsListen, "ops-listen", fmt.Sprintf("127.0.0.1:%d", opsPort), "address for /metrics, /healthz and /debug/pprof; empty turns them off")
	fs.StringSliceVar(&s.AllowedHosts, "allowed-host", nil, "further host names that requests to REST and operations may be for, such as a proxy's (known are IP addresses, localhost, and the names of this machine, of the addresses that are listened at or advertised, and of the certificate)")
	s.Connections.AddFlags(fs)
	s.AddLogFlags(fs)
	fs.DurationVar(&s.StopTimeout, "stop-timeout", 10*time.Second, "maximum duration of an orderly shutdown")
	fs.StringVar(&s.Tracing.Endpoint, "otlp-endpoint", "", "send traces to this collector, OTLP over gRPC, like http://collector:4317 (default: what OTEL_EXPORTER_OTLP_ENDPOINT says; else none)")
}

// AddLogFlags adds the settings of the log.
func (s *Settings) AddLogFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&s.LogFormat, "log-format", "console", "console or json")
}

// AddTLSFlags adds the credentials of a daemon.
func (s *Settings) AddTLSFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.TLS.CertFile, "tls-cert-file", "", "PEM file of this daemon's certificate, for its server and its clients")
	fs.StringVar(&s.TLS.KeyFile, "tls-key-file", "", "PEM file of this daemon's key")
	fs.StringVar(&s.TLS.CAFile, "tls-ca-file", "", "PEM file with the authorities that sign the certificates of peers")
	fs.BoolVar(&s.InsecureListen, "insecure-listen", false, "listen on addresses other than loopback without TLS; everyone who can connect can do everything")
	fs.StringSliceVar(&s.Join.Addresses, "join", nil, "host:port of apid's gRPC server (several with commas): have the cluster's own authority issue the certificate, and renew it")
	fs.StringVar(&s.Join.Token, "join-token", "", "token to join with; needed until there is a certificate (better: --join-token-file)")
	fs.StringVar(&s.Join.TokenFile, "join-token-file", "", "file that holds the join token")
}

// Load sets flags that the command line left out from the environment and from the file
// that --config names. Its error names every unknown or invalid setting.
func Load(fs *pflag.FlagSet, environ func(string) (string, bool)) error {
	var faults []error
	set := func(f *pflag.Flag, value, source string) {
		if err := fs.Set(f.Name, value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", source, err))
		}
	}
	fromEnv := map[string]bool{}
	fs.VisitAll(func(f *pflag.Flag) {
		name := EnvPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := environ(name); ok && !f.Changed && f.Name != "help" {
			fromEnv[f.Name] = true
			set(f, value, name)
		}
	})
	path := ""
	if f := fs.Lookup("config"); f != nil {
		path = f.Value.String()
	}
	if path == "" {
		return errors.Join(faults...)
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return errors.Join(append(faults, fmt.Errorf("read settings from %s: %w", path, err))...)
	}
	raw := k.Raw()
	for _, name := range keys(fs, k) {
		f := fs.Lookup(name)
		switch {
		case f == nil || name == "config" || name == "help":
			faults = append(faults, fmt.Errorf("%s: there is no setting %q; `--help` lists them", path, name))
		case f.Changed || fromEnv[name]:
		default:
			switch v := raw[name].(type) {
			case []any:
				for _, item := range v {
					set(f, fmt.Sprint(item), path)
				}
			case map[string]any:
				for key, value := range v {
					set(f, fmt.Sprintf("%s=%v", key, value), path)
				}
			default:
				set(f, k.String(name), path)
			}
		}
	}
	return errors.Join(faults...)
}

// keys returns the settings in a file. A map is one setting if the setting takes pairs. In
// any other map each key is unknown.
func keys(fs *pflag.FlagSet, k *koanf.Koanf) []string {
	seen := map[string]bool{}
	for _, path := range k.Keys() {
		name, _, _ := strings.Cut(path, ".")
		if f := fs.Lookup(name); f == nil || f.Value.Type() != pairs {
			name = path
		}
		seen[name] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// pairs is the type of flags that take key=value.
const pairs = "stringToString"

// Validate returns an error that names every invalid setting.
func (s *Settings) Validate() error {
	var faults []error
	fault := func(flag, format string, a ...any) {
		faults = append(faults, fmt.Errorf("--%s: "+format, append([]any{flag}, a...)...))
	}
	address := func(flag, value string) {
		if _, _, err := net.SplitHostPort(value); err != nil {
			fault(flag, "%q is not host:port", value)
		}
	}
	for _, a := range []struct{ flag, value string }{{"listen", s.Listen}, {"advertise", s.Advertise}, {"ops-listen", s.OpsListen}} {
		if a.value != "" {
			address(a.flag, a.value)
		}
	}
	for _, h := range s.AllowedHosts {
		if err := CheckHost(h); err != nil {
			fault("allowed-host", "%w", err)
		}
	}
	if err := s.Connections.Validate(); err != nil {
		faults = append(faults, err)
	}
	if s.Consul.Address != "" {
		for _, a := range strings.Split(s.Consul.Address, ",") {
			address("consul-address", a)
		}
	}
	if _, err := zapcore.ParseLevel(s.LogLevel); err != nil {
		fault("log-level", "%q is none of debug, info, warn, error", s.LogLevel)
	}
	if s.LogFormat != "console" && s.LogFormat != "json" {
		fault("log-format", "%q is neither console nor json", s.LogFormat)
	}
	if err := s.Tracing.Validate(); err != nil {
		fault("otlp-endpoint", "%w", err)
	}
	if s.StopTimeout <= 0 {
		fault("stop-timeout", "%v is not a time that an orderly end could take", s.StopTimeout)
	}
	if strings.Trim(s.Prefix, "/") != s.Prefix {
		fault("prefix", "%q must not begin or end with a slash", s.Prefix)
	}
	if s.Consul.Token != "" && s.Consul.TokenFile != "" {
		fault("consul-token-file", "give this or --consul-token, not both")
	}
	for _, a := range s.Join.Addresses {
		address("join", a)
	}
	if s.Join.Wanted() && count(s.TLS.CertFile, s.TLS.KeyFile, s.TLS.CAFile) > 0 {
		fault("join", "it brings a certificate, and --tls-cert-file names another")
	}
	if !s.Join.Wanted() && count(s.Join.Token, s.Join.TokenFile) > 0 {
		fault("join-token", "it is of use with --join only")
	}
	if s.Join.Token != "" && s.Join.TokenFile != "" {
		fault("join-token-file", "--join-token is given as well")
	}
	if n := count(s.TLS.CertFile, s.TLS.KeyFile, s.TLS.CAFile); n != 0 && n != 3 {
		fault("tls-cert-file", "%w", errPartialTLS)
	}
	if count(s.Consul.CertFile, s.Consul.KeyFile) == 1 {
		fault("consul-cert-file", "--consul-cert-file and --consul-key-file go together")
	}
	return errors.Join(faults...)
}

func count(values ...string) int {
	n := 0
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

// ReadToken returns the Consul token from its flag or file.
func (s *ConsulSettings) ReadToken() (string, error) {
	return readToken(s.Token, "consul-token-file", s.TokenFile)
}

// advertised returns the address at which others reach a listener.
func advertised(advertise string, listener net.Addr) (string, error) {
	if advertise != "" {
		return advertise, nil
	}
	host, port, err := net.SplitHostPort(listener.String())
	if err != nil {
		return "", fmt.Errorf("address of listener: %w", err)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return listener.String(), nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("host name to advertise (give --advertise): %w", err)
	}
	return net.JoinHostPort(name, port), nil
}

// OpenConsul returns a client of the configured Consul. It does not connect yet, so a
// daemon that starts while Consul is away waits for it.
func (s *Settings) OpenConsul(log *zap.Logger) (*consul.KV, error) {
	token, err := s.Consul.ReadToken()
	if err != nil {
		return nil, err
	}
	return consul.New(consul.Config{
		Address: s.Consul.Address, Token: token, Datacenter: s.Consul.Datacenter,
		TLS: s.Consul.TLS, CAFile: s.Consul.CAFile, CertFile: s.Consul.CertFile, KeyFile: s.Consul.KeyFile,
		Logger: log,
	})
}
