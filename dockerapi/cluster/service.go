package cluster

import (
	"context"
	"net/http"
	"slices"
	"unicode/utf8"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) serviceRoutes(s *server.Server) {
	s.Handle("GET /services", a.listServices)
	s.Handle("POST /services/create", a.createService)
	s.Handle("GET /services/{id}", a.getService)
	s.Handle("DELETE /services/{id}", a.removeService)
	s.Handle("POST /services/{id}/update", a.updateService)
	s.Stream("GET /services/{id}/logs", a.serviceLogs)
}

// serviceSpec is what clients send. Those before API 1.25 have the networks beside the
// task's spec.
type serviceSpec struct {
	swarm.ServiceSpec
	Networks []swarm.NetworkAttachmentConfig `json:",omitempty"`
}

// read decodes a spec.
func (serviceSpec) read(r *http.Request) (*musterv1.ServiceSpec, error) {
	var in serviceSpec
	if err := server.Decode(r, &in); err != nil {
		return nil, err
	}
	if len(in.TaskTemplate.Networks) == 0 {
		in.TaskTemplate.Networks = in.Networks
	}
	spec, err := convert.ServiceSpec(in.ServiceSpec)
	if err != nil {
		return nil, server.BadRequest(err)
	}
	if auth := r.Header.Get(registry.AuthHeader); auth != "" {
		if !utf8.ValidString(auth) {
			return nil, server.Errorf(http.StatusBadRequest, "%s: want credentials in base64", registry.AuthHeader)
		}
		spec.Task.GetContainer().PullOptions = &musterv1.PullOptions{RegistryAuth: auth}
	}
	return spec, nil
}

var serviceModes = map[string]musterv1.ServiceMode{
	"replicated": musterv1.ServiceMode_REPLICATED, "global": musterv1.ServiceMode_GLOBAL,
	"replicated-job": musterv1.ServiceMode_REPLICATED_JOB, "global-job": musterv1.ServiceMode_GLOBAL_JOB,
}

func (a *API) listServices(w http.ResponseWriter, r *http.Request) error {
	f, err := server.ReadFilters(r, "id", "name", "label", "mode", "runtime")
	if err != nil {
		return err
	}
	req := &musterv1.ListServicesRequest{NamePrefixes: f["name"], IdPrefixes: f["id"], Labels: f.Labels("label")}
	for _, word := range f["mode"] {
		mode, ok := serviceModes[word]
		if !ok {
			return server.Errorf(http.StatusBadRequest, "Invalid mode filter: '%s'", word)
		}
		req.Modes = append(req.Modes, mode)
	}
	var services []*musterv1.Service
	if runtimes := f["runtime"]; len(runtimes) == 0 || slices.Contains(runtimes, string(swarm.RuntimeContainer)) {
		if services, err = a.services(r.Context(), req); err != nil {
			return err
		}
	}
	status := server.Bool(r, "status")
	return server.WriteJSON(w, http.StatusOK, list(services, func(s *musterv1.Service) swarm.Service {
		out := convert.DockerService(s)
		if !status {
			out.ServiceStatus = nil
		}
		return out
	}))
}

// services lists all that pass a request.
func (a *API) services(ctx context.Context, req *musterv1.ListServicesRequest) ([]*musterv1.Service, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Service, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListServices(ctx, req)
		return resp.GetServices(), resp.GetNextPageToken(), err
	})
}

func (a *API) service(ctx context.Context, name string) (*musterv1.Service, error) {
	resp, err := call(ctx, a.Client.GetService, &musterv1.GetServiceRequest{Service: name}, "service", name)
	return resp.GetService(), err
}

func (a *API) getService(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	resp, err := call(r.Context(), a.Client.GetService,
		&musterv1.GetServiceRequest{Service: name, InsertDefaults: server.Bool(r, "insertDefaults")}, "service", name)
	if err != nil {
		return err
	}
	out := convert.DockerService(resp.GetService())
	out.ServiceStatus = nil
	return server.WriteJSON(w, http.StatusOK, out)
}

func (a *API) createService(w http.ResponseWriter, r *http.Request) error {
	spec, err := serviceSpec{}.read(r)
	if err != nil {
		return err
	}
	resp, err := call(r.Context(), a.Client.CreateService, &musterv1.CreateServiceRequest{Spec: spec}, "service", spec.Name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: resp.GetService().GetId()})
}

func (a *API) updateService(w http.ResponseWriter, r *http.Request) error {
	name, query := r.PathValue("id"), r.URL.Query()
	at, err := version(r, "service")
	if err != nil {
		return err
	}
	spec, err := serviceSpec{}.read(r)
	if err != nil {
		return err
	}
	switch rollback := query.Get("rollback"); rollback {
	case "", "none":
	case "previous":
		_, err := call(r.Context(), a.Client.RollbackService, &musterv1.RollbackServiceRequest{Service: name, Version: at}, "service", name)
		if err != nil {
			return err
		}
		return server.WriteJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{})
	default:
		return server.Errorf(http.StatusBadRequest, "unrecognized rollback option %s", rollback)
	}
	// Without credentials in the request the server keeps those of the spec.
	switch from := swarm.RegistryAuthSource(query.Get("registryAuthFrom")); from {
	case "", swarm.RegistryAuthFromSpec:
	case swarm.RegistryAuthFromPreviousSpec:
		return server.Errorf(http.StatusBadRequest, "registryAuthFrom: previous-spec is of use with rollback=previous only; give the credentials again")
	default:
		return server.Errorf(http.StatusBadRequest, "unsupported registryAuthFrom value")
	}
	current, err := a.service(r.Context(), name)
	if err != nil {
		return err
	}
	if err := convert.Keep(spec, current.GetSpec()); err != nil {
		return server.BadRequest(err)
	}
	// The version refers to one object; a name may have come to mean another.
	_, err = call(r.Context(), a.Client.UpdateService, &musterv1.UpdateServiceRequest{Service: current.GetId(), Version: at, Spec: spec}, "service", name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{})
}

func (a *API) removeService(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	if _, err := call(r.Context(), a.Client.RemoveService, &musterv1.RemoveServiceRequest{Service: name}, "service", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
