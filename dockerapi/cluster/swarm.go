package cluster

import (
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) swarmRoutes(s *server.Server) {
	s.Handle("GET /swarm", a.getSwarm)
	s.Handle("POST /swarm/update", a.updateSwarm)
	s.Handle("GET /swarm/unlockkey", func(w http.ResponseWriter, _ *http.Request) error {
		return server.WriteJSON(w, http.StatusOK, swarm.UnlockKeyResponse{})
	})
	s.Handle("POST /swarm/unlock", refuse(http.StatusConflict, "swarm is not locked"))
	s.Handle("POST /swarm/init", refuse(http.StatusServiceUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one. `+
		"(This is a Muster cluster: `muster init` makes another one.)"))
	s.Handle("POST /swarm/join", refuse(http.StatusServiceUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one. `+
		"(This is a Muster cluster: nodes join it by running `muster workerd --join HOST:7700 --join-token-file FILE` on them.)"))
	s.Handle("POST /swarm/leave", refuse(http.StatusServiceUnavailable,
		"this endpoint serves a whole Muster cluster and cannot leave it: stop the worker of a node and remove the node with `docker node rm`"))
	if a.Engine == nil {
		s.Handle("GET /volumes", func(w http.ResponseWriter, _ *http.Request) error {
			return server.WriteJSON(w, http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}})
		})
	}
}

// refuse answers what this API cannot do, with what to do.
func refuse(status int, text string) server.Handler {
	return func(http.ResponseWriter, *http.Request) error { return server.Errorf(status, "%s", text) }
}

func (a *API) getSwarm(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	cluster, err := a.Client.GetCluster(ctx, &musterv1.GetClusterRequest{})
	if err != nil {
		return err
	}
	root, err := a.root(ctx)
	if err != nil {
		return err
	}
	out := swarm.Swarm{ClusterInfo: convert.DockerCluster(cluster.GetCluster(), root.authority)}
	tokens, err := a.Client.GetJoinTokens(ctx, &musterv1.GetJoinTokensRequest{})
	switch code := status.Code(err); {
	case err == nil:
		out.JoinTokens = swarm.JoinTokens{Worker: tokens.GetWorker(), Manager: tokens.GetManager()}
	case code == codes.PermissionDenied, code == codes.FailedPrecondition, code == codes.Unimplemented:
		// Only administrators see them, and a cluster without TLS has none.
	default:
		return err
	}
	return server.WriteJSON(w, http.StatusOK, out)
}

func (a *API) updateSwarm(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	at, err := version(r, "swarm")
	if err != nil {
		return err
	}
	var in swarm.Spec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	flags := map[string]bool{}
	for _, name := range []string{"rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey"} {
		text := r.URL.Query().Get(name)
		if text == "" {
			continue
		}
		if flags[name], err = strconv.ParseBool(text); err != nil {
			return server.Errorf(http.StatusBadRequest, "invalid value for %s: %s", name, text)
		}
	}
	if flags["rotateManagerUnlockKey"] {
		return server.Errorf(http.StatusBadRequest, "rotateManagerUnlockKey: the cluster's key is in a file of apid (--cluster-key-file); `muster cluster key reseal` puts another into use")
	}
	cluster, err := a.Client.GetCluster(ctx, &musterv1.GetClusterRequest{})
	if err != nil {
		return err
	}
	current := cluster.GetCluster()
	if current.GetMeta().GetVersion() != at {
		return server.Of(status.Error(codes.Aborted, ""), "swarm", "")
	}
	spec, rotate, err := convert.ClusterSpec(in, current.GetSpec())
	if err != nil {
		return server.BadRequest(err)
	}
	shown, _, err := convert.ClusterSpec(convert.DockerClusterSpec(current.GetSpec()), current.GetSpec())
	if err != nil {
		return err
	}
	// A client that only rotates a token sends the spec that it was shown.
	if !proto.Equal(spec, shown) {
		if _, err := call(ctx, a.Client.UpdateCluster, &musterv1.UpdateClusterRequest{Version: at, Spec: spec}, "swarm", ""); err != nil {
			return err
		}
	}
	for name, kind := range map[string]musterv1.RotateJoinTokenRequest_Kind{
		"rotateWorkerToken": musterv1.RotateJoinTokenRequest_KIND_WORKER, "rotateManagerToken": musterv1.RotateJoinTokenRequest_KIND_MANAGER,
	} {
		if !flags[name] {
			continue
		}
		if _, err := a.Client.RotateJoinToken(ctx, &musterv1.RotateJoinTokenRequest{Kind: kind}); err != nil {
			return err
		}
	}
	if rotate {
		if _, err := a.Client.RotateAuthority(ctx, &musterv1.RotateAuthorityRequest{}); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
