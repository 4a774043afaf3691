package control

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/taskspec"
)

// ListNodeVolumes asks a node for its volumes.
func (s *Server) ListNodeVolumes(ctx context.Context, req *musterv1.ListNodeVolumesRequest) (*musterv1.ListNodeVolumesResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	node, err := s.nodes.id(ctx, req.Node)
	if err != nil {
		return nil, err
	}
	all, err := s.opt.Prober.Volumes(ctx, node)
	if err != nil {
		return nil, err
	}
	s.View.Read(func(r *objects.Reader) {
		name, named := hostnameOf(r, node), namedVolumes(r)
		for _, v := range all {
			v.NodeId, v.NodeName, v.Services = node, name, named.users(v.Name)
		}
	})
	return &musterv1.ListNodeVolumesResponse{Volumes: all}, nil
}

// RemoveNodeVolume has a node remove one of its volumes.
func (s *Server) RemoveNodeVolume(ctx context.Context, req *musterv1.RemoveNodeVolumeRequest) (*musterv1.RemoveNodeVolumeResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	node, err := s.nodes.id(ctx, req.Node)
	if err != nil {
		return nil, err
	}
	if req.Volume == "" || len(req.Volume) > validate.MaxLabelKey || strings.ContainsRune(req.Volume, 0) {
		return nil, status.Error(codes.InvalidArgument, "volume: invalid name: want that of a volume of the node")
	}
	var users []string
	s.View.Read(func(r *objects.Reader) { users = namedVolumes(r).users(req.Volume) })
	if len(users) > 0 && !req.Force {
		listed := strings.Join(users[:min(len(users), maxUsers)], ", ")
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %q is mounted by services (%s), whose next task may use it: update or remove them first, or use force", req.Volume, listed)
	}
	if err := s.opt.Prober.RemoveVolume(ctx, node, req.Volume); err != nil {
		return nil, err
	}
	return &musterv1.RemoveNodeVolumeResponse{}, nil
}

// volumeNames are the names of volumes that services' mounts have, by name of the service.
type volumeNames map[string][]volumeName

// volumeName is the name of a volume, or what names a template may stand for.
type volumeName struct {
	text    string
	pattern *regexp.Regexp
}

// namedVolumes reads the names from the specs of all services, the former ones too: an update
// may be rolled back.
func namedVolumes(r *objects.Reader) volumeNames {
	all := volumeNames{}
	r.Services("", func(s *objects.Service) bool {
		for _, digest := range [][]byte{s.Record.GetTaskDigest(), s.Record.GetFormerTaskDigest()} {
			if len(digest) == 0 {
				continue
			}
			for _, c := range taskspec.Containers(r.StoredSpec(digest)) {
				for _, m := range c.GetMounts() {
					if m.GetType() == musterv1.Mount_VOLUME && m.GetSource() != "" {
						name := r.ServiceName(s.ID)
						all[name] = append(all[name], newVolumeName(m.GetSource()))
					}
				}
			}
		}
		return true
	})
	return all
}

var templateAction = regexp.MustCompile(`\{\{.*?\}\}`)

func newVolumeName(source string) volumeName {
	if !strings.Contains(source, "{{") {
		return volumeName{text: source}
	}
	parts := templateAction.Split(source, -1)
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return volumeName{pattern: regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")}
}

// users returns the services whose mounts may mean a volume.
func (v volumeNames) users(volume string) []string {
	var users []string
	for service, names := range v {
		if slices.ContainsFunc(names, func(n volumeName) bool { return n.text == volume || n.pattern != nil && n.pattern.MatchString(volume) }) {
			users = append(users, service)
		}
	}
	slices.Sort(users)
	return users
}
