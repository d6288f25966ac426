# What takes two machines of the cluster, whatever runs them: a token that the control plane makes
# and an agent joins by, the first service, a node that is gone for good. For the Vagrantfile.
require "tempfile"

module EstibaCluster
  # In memory on either machine, for as long as it takes.
  TOKEN = "/run/estiba-join-token".freeze

  class NoControlPlane < Vagrant::Errors::VagrantError
    error_message("The control plane does not run, and agents join it: vagrant up control-plane")
  end

  # The control plane's machine, as seen from another one.
  def self.control_plane(machine)
    found = machine.env.machine(:"control-plane", machine.provider_name)
    raise NoControlPlane unless found.state.id == :running

    found
  end

  # Run a command as root, and show what it prints as the output of the machine it runs on.
  def self.run(machine, command)
    machine.communicate.sudo(command) do |_, text|
      machine.ui.detail(text.chomp, color: :green) unless text.strip.empty?
    end
  end

  # Take the node of a machine that was destroyed out of the cluster.
  def self.forget(machine)
    return unless machine.state.id == :not_created

    run(control_plane(machine), "estiba node rm --force #{machine.name}")
  rescue Vagrant::Errors::VagrantError => error
    machine.ui.warn("Node #{machine.name} stays in the cluster: #{error.message}")
  end

  # A token for one machine, valid for an hour. It goes from file to file, all of them 0600 or gone:
  # what a command prints would stand in the output of vagrant up --debug.
  class Token < Vagrant.plugin("2", :provisioner)
    # Of the user of ssh, who carries it.
    EMPTY_FILE = "install -m 600 -o $SUDO_UID /dev/null #{TOKEN}".freeze

    def provision
      return if @machine.communicate.test("test -e /etc/estiba/agent.toml", sudo: true)

      Tempfile.create("estiba") do |file|
        fetch(EstibaCluster.control_plane(@machine), file.path)
        @machine.communicate.sudo(EMPTY_FILE)
        @machine.communicate.upload(file.path, TOKEN)
      end
    end

    private

    def fetch(control_plane, path)
      make = "estiba cluster token create --quiet --uses 1 --ttl 1h >#{TOKEN}"
      control_plane.communicate.sudo("#{EMPTY_FILE} && #{make}")
      control_plane.communicate.download(TOKEN, path)
    ensure
      control_plane.communicate.sudo("rm -f #{TOKEN}")
    end
  end

  # A first service on the cluster, once all agents are there.
  class Service < Vagrant.plugin("2", :provisioner)
    class Config < Vagrant.plugin("2", :config)
      attr_accessor :replicas
    end

    def provision
      control_plane = EstibaCluster.control_plane(@machine)
      EstibaCluster.run(control_plane, "/vagrant/deploy/vagrant/service.sh #{config.replicas}")
    end
  end

  class Plugin < Vagrant.plugin("2")
    name "Estiba"

    provisioner("estiba_token") { Token }
    provisioner("estiba_service") { Service }
    config("estiba_service", :provisioner) { Service::Config }
  end
end
