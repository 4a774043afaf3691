# Muster's tasks. `make help` lists them.

BIN     := $(CURDIR)/bin
TOOLS   := $(BIN)/tools
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X github.com/musterhq/muster/plugins/program.version=$(VERSION)

# Pinned tools. What generates code is pinned in tools/go.mod.
BUF           := github.com/bufbuild/buf/cmd/buf@v1.73.0
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.8.0
GOTESTSUM     := gotest.tools/gotestsum@v1.13.0

# Modules of their own; ./... of this one leaves them out.
MODULES = $(patsubst %/go.mod,%,$(shell git ls-files '*/go.mod' ':!tools'))

export PATH := $(TOOLS):$(BIN):$(PATH)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z/-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: build
build: ## build muster and the plugins that ship into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/muster ./cmd/muster
	@for d in ./cmd/muster-executor-* ./cmd/muster-network-*; do \
		echo "CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/plugins/$$(basename $$d) $$d"; \
		CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/plugins/$$(basename $$d) $$d || exit 1; \
	done
	@chmod go-w $(BIN)/plugins $(BIN)/plugins/* # a worker refuses plugins that others can write to, whatever the umask is

.PHONY: demo
demo: build ## start a cluster of three workers here, deploy to it, look at it (DEMO_EXIT=1: and take it down)
	./scripts/demo

.PHONY: test
test: ## everything that must pass: lint, generated code, all tests with the race detector
	./scripts/test

TAG       ?= $(VERSION)
PLATFORMS ?= linux/$(shell go env GOHOSTARCH)

.PHONY: image
image: ## build the container images into bin/image and the Docker Engine (TAG, PLATFORMS="linux/amd64 linux/arm64")
	./scripts/image $(TAG) $(PLATFORMS)

# Arguments of compose/up (ARGS="--small", ARGS="--scale schedulerd=3") or of bench (ARGS="-scenario deploy").
ARGS ?=

.PHONY: compose-up
compose-up: image build ## build images, start compose/compose.yaml with them, and log in as the context compose (ARGS="--small --monitoring")
	MUSTER_VERSION=$(TAG) ./compose/up $(ARGS)

.PHONY: compose-down
compose-down: ## take down what compose-up started, with its data and the tasks' containers
	MUSTER_VERSION=$(TAG) ./compose/down

.PHONY: release
release: $(BIN)/cyclonedx-gomod $(if $(wildcard charts/muster/Chart.yaml),$(BIN)/helm) ## build all of a release into dist/ (PLATFORMS as above, VERSION from the tag); see docs/releases.md
	./scripts/release $(VERSION) $(if $(filter command line environment,$(origin PLATFORMS)),$(PLATFORMS))

.PHONY: lint
lint: $(TOOLS)/buf $(TOOLS)/golangci-lint ## check code (mistakes, format), who imports whom, and the contract's style
	golangci-lint run ./...
	@# Modules of their own, which ./... leaves out.
	@for mod in $(MODULES); do echo "cd $$mod && golangci-lint run ./..."; (cd $$mod && golangci-lint run ./...) || exit 1; done
	@# Uncached: it runs go list, and the cache does not know what that reads.
	go test -count=1 ./test/imports ./test/language
	buf lint
	buf format --diff --exit-code api

.PHONY: tidy
tidy: ## tidy go.mod and go.sum of all modules but those of tools/; needed after a change of requirements
	@for mod in . $(MODULES); do echo "cd $$mod && go mod tidy"; (cd $$mod && go mod tidy) || exit 1; done

.PHONY: vet
vet: ## build and vet all modules but those of tools/
	@for mod in . $(MODULES); do echo "cd $$mod && go vet ./..."; (cd $$mod && go build -o /dev/null ./... && go vet ./...) || exit 1; done

.PHONY: vulncheck
vulncheck: $(TOOLS)/govulncheck ## look for known vulnerabilities in what is called of dependencies and Go (needs vuln.go.dev, or VULNDB=file:///COPY)
	govulncheck $(if $(VULNDB),-db $(VULNDB)) ./...
	@for mod in $(MODULES); do echo "cd $$mod && govulncheck ./..."; (cd $$mod && govulncheck $(if $(VULNDB),-db $(VULNDB)) ./...) || exit 1; done

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## generate Go, the REST gateway and OpenAPI from api/, and docs/configuration.md
	buf generate
	go run ./cmd/muster/internal/reference -settings docs/configuration.md

.PHONY: generate-check
generate-check: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## fail if generated code is not what the contract generates
	./scripts/generate-check

.PHONY: breaking
breaking: $(TOOLS)/buf ## fail if the contract breaks what api/contract.binpb promises, REST paths included
	buf breaking api --against api/contract.binpb
	cd api && go test .

.PHONY: contract-accept
contract-accept: $(TOOLS)/buf ## promise the contract as it is: write api/contract.binpb
	buf build api --exclude-source-info -o api/contract.binpb

# Always asked for: go knows what has changed.
.PHONY: $(BIN)/bench
$(BIN)/bench:
	go -C bench build -o $@ .

.PHONY: bench
bench: build $(BIN)/bench ## measure (ARGS="-scenario deploy -runs 3"); see bench/README.md
	$(BIN)/bench $(ARGS)

.PHONY: performance
performance: build $(BIN)/bench ## measure everything and rewrite docs/performance/figures.md and its charts; about 25 minutes on a quiet machine
	$(BIN)/bench -scenario all -runs 3 -out docs/performance/figures.json -document docs/performance/figures.md

DURATION ?= 10m
SEED     ?= 0

.PHONY: chaos
chaos: ## run a real cluster under load for DURATION (10m), and kill, stop, slow and cut off its parts by SEED; needs root
	go run ./test/chaos -duration $(DURATION) -seed $(SEED) -json $(BIN)/chaos.json

.PHONY: chaos-certificates
chaos-certificates: ## run a cluster under load for DURATION (10m) with certificates that last a minute, and count renewals and failed calls
	go run ./test/chaos -certificates 1m -replicas 2 -duration $(DURATION) -json $(BIN)/chaos-certificates.json

SEEDS ?= 200
FIRST ?= 1

.PHONY: simulate
simulate: ## run a whole cluster on virtual time, with faults, for SEEDS (200) seeds from FIRST (1) on; RACE=1: with the race detector
	./scripts/simulate $(SEEDS) $(FIRST)

.PHONY: install-systemd
install-systemd: ## run docs/install.md under a real systemd, end daemons, and boot again; needs root and systemd, one to two minutes
	go test -count=1 -timeout 20m -tags systemd -run TestBoot -v ./test/install

.PHONY: chart-kubernetes
chart-kubernetes: $(BIN)/kube-apiserver $(BIN)/helm ## install, upgrade and remove the chart at a real Kubernetes API server; needs etcd (Debian: etcd-server)
	cd test/chart && go test -count=1 -timeout 20m -tags kubernetes -run TestInstall -v .

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)

$(TOOLS)/buf: Makefile
	GOBIN=$(TOOLS) go install $(BUF)

$(TOOLS)/golangci-lint: Makefile
	GOBIN=$(TOOLS) go install $(GOLANGCI_LINT)

$(TOOLS)/govulncheck: Makefile
	GOBIN=$(TOOLS) go install $(GOVULNCHECK)

$(TOOLS)/gotestsum: Makefile
	GOBIN=$(TOOLS) go install $(GOTESTSUM)

bin/tools/gotestsum: $(TOOLS)/gotestsum

$(TOOLS)/protoc-gen-go: tools/go.mod
	cd tools && GOBIN=$(TOOLS) go install tool

# The Consul server that tests and demos run; see tools/consul/README.md.
$(BIN)/consul: tools/consul/go.mod
	cd tools/consul && go build -o $@ github.com/hashicorp/consul

bin/consul: $(BIN)/consul

# What tests of the compose file and of the chart drive; pinned, and no part of Muster.
$(BIN)/docker-compose: tools/compose/go.mod
	cd tools/compose && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X github.com/docker/compose/v2/internal.Version=v2.40.3' -o $@ github.com/docker/compose/v2/cmd

# What tests of Docker's API drive beside the client of the Debian package; no part of Muster either. It is no module, so
# the compiler is told which Go it is written for.
$(BIN)/docker-cli: tools/docker-cli/go.mod
	cd tools/docker-cli && CGO_ENABLED=0 go build -trimpath -gcflags=github.com/docker/cli/...=-lang=go1.26 -ldflags '-s -w -X github.com/docker/cli/cli/version.Version=29.8.0' -o $@ github.com/docker/cli/cmd/docker

# Its own version, and that of the Kubernetes that its libraries are of, as its own Makefile has it.
HELM_VERSIONS := -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
	$(foreach p,pkg/chartutil pkg/lint/rules,-X helm.sh/helm/v3/$(p).k8sVersionMajor=1 -X helm.sh/helm/v3/$(p).k8sVersionMinor=37)

$(BIN)/helm: tools/helm/go.mod
	cd tools/helm && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(HELM_VERSIONS)' -o $@ helm.sh/helm/v3/cmd/helm

# The Kubernetes API server that the chart is installed on; see tools/kubernetes/README.md.
$(BIN)/kube-apiserver: tools/kubernetes/go.mod
	cd tools/kubernetes && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(KUBERNETES_VERSION)' -o $@ k8s.io/kubernetes/cmd/kube-apiserver

KUBERNETES_VERSION := $(foreach v,gitVersion=v1.36.3 gitMajor=1 gitMinor=36,-X k8s.io/component-base/version.$(v))

bin/kube-apiserver: $(BIN)/kube-apiserver

# What writes a release's bills of materials; no part of Muster either.
$(BIN)/cyclonedx-gomod: tools/sbom/go.mod
	cd tools/sbom && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

bin/cyclonedx-gomod: $(BIN)/cyclonedx-gomod
bin/docker-compose: $(BIN)/docker-compose
bin/docker-cli: $(BIN)/docker-cli
bin/helm: $(BIN)/helm
