// Package dockerapi serves Docker's API in front of Muster, so that the docker command and
// programs written for swarm mode work unmodified. It is a client of the control API: what
// its own credentials may do there, everyone may who reaches it.
package dockerapi

import (
	"context"
	"errors"
	"net/http"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/cluster"
	"github.com/musterhq/muster/dockerapi/engine"
	"github.com/musterhq/muster/dockerapi/server"
)

// Config is what a Handler needs.
type Config struct {
	// Client speaks to apid.
	Client musterv1.ControlServiceClient
	Logger *zap.Logger
	// Version is Muster's.
	Version string
	// Engine is the address of a Docker Engine that gets the requests that are not about
	// the cluster: "unix:///var/run/docker.sock". Empty: they are refused.
	Engine string
	// Node is the node that clients call "self". Empty: the one with this machine's host
	// name.
	Node string
	// Ending ends streams when it ends: the process is about to stop.
	Ending context.Context
}

var errNoClient = errors.New("the Docker API needs a client of the control API")

// Handler returns what serves Docker's API.
func Handler(cfg Config) (http.Handler, error) {
	if cfg.Client == nil {
		return nil, errNoClient
	}
	api := &cluster.API{Client: cfg.Client, Logger: cfg.Logger, Node: cfg.Node, Version: cfg.Version, Ending: cfg.Ending}
	frame := server.Config{Version: cfg.Version, Logger: cfg.Logger, Rest: http.HandlerFunc(cluster.WithoutEngine)}
	if cfg.Engine != "" {
		e, err := engine.New(cfg.Engine, cfg.Logger)
		if err != nil {
			return nil, err
		}
		api.Engine, frame.Rest, frame.Limit = e, e, e.Version
	}
	s := server.New(frame)
	api.Routes(s)
	return s, nil
}
