package control

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) clusterKind() *kind[*recordv1.Cluster, *objects.Cluster, *musterv1.Cluster] {
	return &kind[*recordv1.Cluster, *objects.Cluster, *musterv1.Cluster]{
		Backend: s.Backend, name: "cluster", table: s.Tables.Clusters, implicit: true,
		find: func(r *objects.Reader, _ string) (*objects.Cluster, error) { return r.Cluster(), nil },
		message: func(r *objects.Reader, c *objects.Cluster) *musterv1.Cluster {
			m := r.ClusterMessage(c)
			s.addDaemons(m.Status)
			return m
		},
	}
}

// GetCluster returns the cluster.
func (s *Server) GetCluster(ctx context.Context, _ *musterv1.GetClusterRequest) (*musterv1.GetClusterResponse, error) {
	m, err := s.clusters.get(ctx, state.ClusterID)
	return &musterv1.GetClusterResponse{Cluster: m}, err
}

// UpdateCluster replaces the cluster's settings.
func (s *Server) UpdateCluster(ctx context.Context, req *musterv1.UpdateClusterRequest) (*musterv1.UpdateClusterResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Cluster(req.Spec); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	m, err := s.clusters.update(ctx, state.ClusterID, &req.Version, func(_ *store.Tx, _ string, e store.Entry[*recordv1.Cluster]) (*recordv1.Cluster, error) {
		created := now
		if e.Version > 0 {
			if proto.Equal(e.Value.Spec, req.Spec) {
				return nil, backend.ErrNoChange
			}
			created = e.Value.CreatedAt
		}
		return &recordv1.Cluster{Spec: req.Spec, CreatedAt: created, UpdatedAt: now}, nil
	})
	return &musterv1.UpdateClusterResponse{Cluster: m}, err
}

// addDaemons adds to a cluster's status the daemons and their shards.
func (s *Server) addDaemons(m *musterv1.ClusterStatus) {
	m.Version = s.opt.Member.Version
	for _, sub := range s.opt.Subsystems {
		held := map[string][]uint32{}
		for shard, owner := range sub.Owners() {
			held[owner.Instance] = append(held[owner.Instance], uint32(shard))
		}
		for _, member := range sub.Members() {
			d := &musterv1.DaemonStatus{
				Daemon: member.Daemon, Instance: member.Instance, Address: member.Address, Version: member.Version,
			}
			if sub.Name != s.opt.Unsharded {
				d.Shards = held[member.Instance]
				slices.Sort(d.Shards)
			}
			m.Daemons = append(m.Daemons, d)
		}
	}
}

// GetClusterStatus is answered whatever is wrong: then it is needed.
func (s *Server) GetClusterStatus(ctx context.Context, _ *musterv1.GetClusterStatusRequest) (*musterv1.GetClusterStatusResponse, error) {
	resp := clusterstatus.Judge(s.opt.Looker.Look(ctx))
	resp.AnsweredBy = s.opt.Member.Instance
	if s.Loaded() {
		s.View.Read(func(r *objects.Reader) { resp.Nodes = r.NodeSummary() })
	}
	return resp, nil
}
