package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
)

// healthTimeout bounds a question about health where no flag does.
const healthTimeout = 3 * time.Second

// healthCommand makes the command that container engines ask for health with:
// Muster's images hold no other program that could.
func healthCommand() *cobra.Command {
	var (
		listen  string
		timeout time.Duration
		live    bool
	)
	ports := map[string]int{"workerd": workerdPort + 1000, "dockerapid": dockerapidPort + 1000}
	var names []string
	for _, m := range managers() {
		ports[m.name] = m.port + 1000
		names = append(names, m.name)
	}
	names = append(names, "workerd", "dockerapid")
	cmd := &cobra.Command{
		Use: "health DAEMON", Short: "Check the health of a daemon on this machine",
		Long: `Check the health of a daemon on this machine, for health checks of container engines and init systems.

The address is the daemon's --ops-listen, from the flag or the variable MUSTER_OPS_LISTEN, as for the daemon. The exit
code is 0 if the daemon is healthy and 1 if it is not or does not answer.`,
		Example:   "  muster health apid\n  muster health schedulerd --ops-listen 127.0.0.1:9703",
		ValidArgs: names, Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if listen == "" {
				listen = os.Getenv(daemon.EnvPrefix + "OPS_LISTEN")
			}
			if listen == "" {
				listen = fmt.Sprintf("127.0.0.1:%d", ports[args[0]])
			}
			path := "healthz"
			if live {
				path = "livez"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			said, err := askHealth(ctx, listen, path)
			if err != nil {
				return fmt.Errorf("%s at %s: %w", args[0], listen, err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		},
	}
	cmd.Flags().StringVar(&listen, "ops-listen", "", "the daemon's own --ops-listen (default: that daemon's default)")
	cmd.Flags().DurationVar(&timeout, "timeout", healthTimeout, "maximum time to wait for the answer")
	cmd.Flags().BoolVar(&live, "live", false, "check only that the process answers")
	return cmd
}

// askHealth asks at an address for listening.
func askHealth(ctx context.Context, listen, path string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", &cli.UsageError{Err: fmt.Errorf("--ops-listen: %w", err)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	resp, err := askOps(ctx, net.JoinHostPort(host, port), path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	said := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(said)
	}
	return said, nil
}

// askOps asks an operations port for a page, with or without TLS. The daemon is on this
// machine and answers yes or no, so it need not show who it is.
func askOps(ctx context.Context, address, path string) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}
	client := &http.Client{
		Transport: transport,
		// A daemon never redirects. Another program must not choose who is asked.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := get(ctx, client, "https://"+address+"/"+path)
	// A server without TLS answers in the clear.
	if errors.Is(err, http.ErrSchemeMismatch) {
		return get(ctx, client, "http://"+address+"/"+path)
	}
	return resp, err
}

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
