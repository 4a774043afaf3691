package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/dockerapi"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/mtls"
)

const (
	dockerapidPort = 7706
	// dockerServer is the Docker API's server, as metrics name it.
	dockerServer = "docker"
	// socketMode lets a group use the socket, as Docker's does.
	socketUmask = 0o117
)

// dockerFlags are dockerapid's own settings.
type dockerFlags struct {
	socket, group              string
	listen                     string
	certFile, keyFile, clients string
	engine, node               string
	api                        apiFlags
}

func (f *dockerFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.socket, "socket", "/run/muster/docker.sock", "path of the unix socket for Docker's clients; its mode is 0660; empty turns it off")
	fs.StringVar(&f.group, "socket-group", "", "group, by name or number, whose members may use the socket (default: that of the process)")
	fs.StringVar(&f.listen, "docker-listen", "", "address for Docker's clients over TCP, always with TLS and client certificates, such as 0.0.0.0:2376; empty turns it off")
	fs.StringVar(&f.certFile, "docker-cert-file", "", "PEM file with the server's certificate for --docker-listen")
	fs.StringVar(&f.keyFile, "docker-key-file", "", "PEM file with the key of that certificate")
	fs.StringVar(&f.clients, "docker-client-ca-file", "", "PEM file with the authorities that sign the certificates of Docker's clients; who has such a certificate may do what dockerapid may")
	f.addEngine(fs)
	f.api.add(fs)
}

// addEngine adds the settings that muster dev has, too.
func (f *dockerFlags) addEngine(fs *pflag.FlagSet) {
	fs.StringVar(&f.engine, "engine", "", "address of a Docker Engine that gets all requests that are not about the cluster, such as unix:///var/run/docker.sock; who may use the socket may then use this Engine, which amounts to root on its machine (default: such requests are refused)")
	fs.StringVar(&f.node, "node", "", "id or host name of the node that Docker's clients call self (default: the node with this machine's host name)")
}

func (f *dockerFlags) check() error {
	var faults []error
	if f.socket == "" && f.listen == "" {
		faults = append(faults, errors.New("--socket: give a path, or --docker-listen an address: Docker's clients need one of them"))
	}
	if given := f.certFile != "" && f.keyFile != "" && f.clients != ""; f.listen != "" && !given {
		faults = append(faults, errors.New("--docker-listen: it needs --docker-cert-file, --docker-key-file and --docker-client-ca-file; Docker's API is not served over TCP without TLS"))
	}
	return errors.Join(append(faults, f.api.check())...)
}

// apiFlags say where the control API is, and who dockerapid is there.
type apiFlags struct{ address, tokenFile, caFile, certFile, keyFile, serverName string }

func (f *apiFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.address, "address", cli.DefaultAddress, "host:port of apid's gRPC server, or several separated by commas, of which the first that answers is used")
	fs.StringVar(&f.tokenFile, "token-file", "", "file with the API token that dockerapid uses; its role is what Docker's clients may do. It is read again when it changes")
	fs.StringVar(&f.caFile, "tls-ca-file", "", "PEM file with the authorities that sign apid's certificate; without it connections to apid are in the clear")
	fs.StringVar(&f.certFile, "tls-cert-file", "", "PEM file of a certificate to use in place of a token (muster certificate create)")
	fs.StringVar(&f.keyFile, "tls-key-file", "", "PEM file of the key of that certificate")
	fs.StringVar(&f.serverName, "tls-server-name", "", "name to expect in the server's certificate, for a proxy in front of apid")
}

func (f *apiFlags) check() error {
	switch {
	case (f.certFile == "") != (f.keyFile == ""):
		return errors.New("--tls-cert-file and --tls-key-file go together")
	case f.caFile == "" && (f.certFile != "" || f.tokenFile != ""):
		return errors.New("--tls-ca-file: must be given, because neither a token nor a certificate is used in the clear")
	}
	for address := range strings.SplitSeq(f.address, ",") {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("--address: %q is not host:port", address)
		}
	}
	return nil
}

// dial returns a connection to apid, which is made when it is first used.
func (f *apiFlags) dial() (*grpc.ClientConn, error) {
	options := cli.RetryRefused()
	if f.caFile == "" {
		return daemon.Dialer(insecure.NewCredentials(), options...)(f.address)
	}
	authorities, err := os.ReadFile(f.caFile)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca-file: %w", err)
	}
	var pair *tls.Certificate
	if f.certFile != "" {
		p, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert-file, --tls-key-file: %w", err)
		}
		pair = &p
	}
	host := f.serverName
	if host == "" {
		first, _, _ := strings.Cut(f.address, ",")
		host, _, _ = net.SplitHostPort(first)
	}
	c, err := mtls.User(pair, authorities, host)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca-file: %w", err)
	}
	if f.tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(f.tokenFile)))
	}
	return daemon.Dialer(credentials.NewTLS(c), options...)(f.address)
}

// tokenFile sends the token in a file with each call.
type tokenFile string

func (t tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	b, err := os.ReadFile(string(t))
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(b))}, nil
}

func (tokenFile) RequireTransportSecurity() bool { return true }

func dockerCommand(version string) *cobra.Command {
	var (
		s daemon.Settings
		f dockerFlags
	)
	cmd := &cobra.Command{
		Use: "dockerapid", Short: "Serve Docker's API in front of a cluster", Args: cobra.NoArgs,
		Long: `Serve Docker's API in front of a cluster, so that docker service, docker stack, docker node and programs that were written
for swarm mode work unmodified.

It is a client of apid like the command line, and needs neither Consul nor a certificate of a daemon. Everyone who may use
its socket may do what its own token or certificate allows. Any number of them may run.
` + settingsHelp,
		Example: `  muster token create docker --role operator
  muster dockerapid --address apid:7700 --tls-ca-file ca.pem --token-file token
  DOCKER_HOST=unix:///run/muster/docker.sock docker service ls`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd, &s); err != nil {
				return err
			}
			if err := errors.Join(f.check(), refuseOpen(&s, false, address{"ops-listen", s.OpsListen})); err != nil {
				return &cli.UsageError{Err: err}
			}
			return runDocker(cmd.Context(), &s, &f, version)
		},
	}
	s.AddProcessFlags(cmd.Flags(), dockerapidPort+1000)
	f.add(cmd.Flags())
	return cmd
}

// runDocker runs dockerapid as this process.
func runDocker(ctx context.Context, s *daemon.Settings, f *dockerFlags, version string) error {
	log, err := s.Log()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	defer notifier{log}.stops(ctx)()
	warnOfChangeable(log, append(trustedFiles(s), trusted{"--token-file", f.api.tokenFile}, trusted{"--tls-ca-file", f.api.caFile}, trusted{"--tls-key-file", f.api.keyFile},
		trusted{"--docker-key-file", f.keyFile}, trusted{"--docker-client-ca-file", f.clients})...)
	conn, err := f.api.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	registry := daemon.NewRegistry()
	connections, err := daemon.NewConnections(s.Connections, f.listen != "", log.Named("connections"), registry)
	if err != nil {
		return err
	}
	handler, err := dockerapi.Handler(dockerapi.Config{
		Client: musterv1.NewControlServiceClient(conn), Logger: log.Named("docker"), Version: version, Engine: f.engine, Node: f.node, Ending: ctx,
	})
	if err != nil {
		return &cli.UsageError{Err: fmt.Errorf("--engine: %w", err)}
	}
	listeners, err := f.open()
	if err != nil {
		return err
	}
	var tasks []daemon.Task
	for _, l := range listeners {
		log.Info("Docker API is served", zap.String("network", l.Addr().Network()), zap.String("address", l.Addr().String()))
		bound := connections.Listen(l, dockerServer)
		tasks = append(tasks, daemon.Task{Name: "serve Docker API", Run: func(ctx context.Context) error {
			return daemon.ServeHTTP(ctx, handler, bound, s.StopTimeout/2)
		}})
	}
	ops, err := newListening("dockerapid", clusterID(daemon.Plain(), f.api.address), dockerapidPort+1000, s, log).openOps(ctx, connections, daemon.Plain(), nil)
	if err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	if ops != nil {
		tasks = append(tasks, serveOps("dockerapid", ops, s, registry, func() error { return connected(conn) }, nil, thisMachine(s).Check))
	}
	conn.Connect()
	notifier{log}.ready()
	return daemon.RunTasks(ctx, tasks...)
}

// connected returns what keeps dockerapid from its work: that apid does not answer.
func connected(conn *grpc.ClientConn) error {
	if state := conn.GetState(); state == connectivity.TransientFailure || state == connectivity.Connecting {
		return fmt.Errorf("no connection to apid: %s", state)
	}
	return nil
}

// open opens what Docker's clients connect to.
func (f *dockerFlags) open() ([]net.Listener, error) {
	var listeners []net.Listener
	if f.socket != "" {
		l, err := listenSocket(f.socket, f.group)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	if f.listen != "" {
		l, err := f.listenTLS()
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listenTLS listens for clients that have a certificate.
func (f *dockerFlags) listenTLS() (net.Listener, error) {
	pair, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return nil, fmt.Errorf("--docker-cert-file, --docker-key-file: %w", err)
	}
	authorities, err := os.ReadFile(f.clients)
	if err != nil {
		return nil, fmt.Errorf("--docker-client-ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("--docker-client-ca-file: %s holds no certificate in PEM", f.clients)
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return nil, fmt.Errorf("--docker-listen: %w", err)
	}
	return tls.NewListener(l, &tls.Config{
		// Clients of Docker 20.10 speak 1.3 as well.
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{"http/1.1"},
	}), nil
}

// listenSocket listens at a path, for the owner and one group. What an earlier process has
// left there is removed.
func listenSocket(path, group string) (net.Listener, error) {
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, fmt.Errorf("--socket-group: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("--socket: another process serves %s", path)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(path)
		}
	}
	// No moment may pass in which others could connect.
	before := syscall.Umask(socketUmask)
	l, err := net.Listen("unix", path)
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	if gid >= 0 {
		if err := os.Chown(path, -1, gid); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("--socket-group: %w", err)
		}
	}
	return l, nil
}

func groupID(group string) (int, error) {
	if id, err := strconv.Atoi(group); err == nil {
		return id, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}
