package serve

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi"
	"github.com/musterhq/muster/internal/daemon"
)

const (
	// dockerPart is the Docker API among the listeners of a cluster.
	dockerPart = "Docker API"
	// dockerSocket is its socket in the cluster's directory.
	dockerSocket = "docker.sock"
	// maxSocket is how long the path of a socket can be.
	maxSocket = 107
)

// listenDocker opens the socket of the Docker API; nil if it is turned off.
func (c *devCluster) listenDocker() (net.Listener, error) {
	if c.dev.docker.socket == "" {
		return nil, nil
	}
	path := c.dev.docker.socket
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	if len(path) > maxSocket && c.dev.docker.socket == dockerSocket {
		// It is the default, which should not keep a cluster from starting.
		_, _ = fmt.Fprintf(c.out, "warning: docker commands cannot reach the cluster: %s is too long for the path of a socket; give --docker-socket another\n", path)
		return nil, nil
	}
	l, err := listenSocket(path, "")
	if err != nil {
		return nil, fmt.Errorf("--docker-%w", err)
	}
	c.docker = path
	return l, nil
}

// serveDocker returns what serves the Docker API; nil if it is turned off.
func (c *devCluster) serveDocker(ctx context.Context) (func(context.Context) error, error) {
	l := c.listeners[dockerPart]
	if l == nil {
		return nil, nil
	}
	node := c.dev.docker.node
	if node == "" && c.workers > 0 {
		node = workerPrefix + "1"
	}
	conn, err := daemon.Dialer(c.host.Credentials.Client)(c.listeners["apid"].Addr().String())
	if err != nil {
		return nil, err
	}
	handler, err := dockerapi.Handler(dockerapi.Config{
		Client: musterv1.NewControlServiceClient(conn), Logger: c.log.Named("docker"), Version: c.version, Engine: c.dev.docker.engine, Node: node, Ending: ctx,
	})
	if err != nil {
		return nil, fmt.Errorf("--engine: %w", err)
	}
	return func(ctx context.Context) error {
		defer func() { _ = conn.Close() }()
		return daemon.ServeHTTP(ctx, handler, l, c.settings.StopTimeout/2)
	}, nil
}

// dockerHint says how docker commands reach the cluster.
func (c *devCluster) dockerHint() string {
	if c.docker == "" {
		return ""
	}
	path := c.docker
	if full, err := filepath.Abs(path); err == nil {
		path = full
	}
	return fmt.Sprintf("\nDocker's API: export DOCKER_HOST=unix://%s (docker service ls), or docker context create muster --docker host=unix://%s\n", path, path)
}
