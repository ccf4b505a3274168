package org.elasticsearch.plugins;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.apache.lucene.util.Version;
import org.elasticsearch.Build;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.ClusterState;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.ClusterSettings;
import org.elasticsearch.common.settings.IndexScopedSettings;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.common.settings.SettingsFilter;
import org.elasticsearch.env.Environment;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestController;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.transport.netty4.Netty4Plugin;
import org.elasticsearch.xcontent.XContentBuilder;

/**
 * One Elasticsearch node: {@code org.elasticsearch.plugins.ElasticsearchNode SETTING=VALUE ...}.
 *
 * <p>The distribution's own launcher loads its modules from folders that no registry carries; here they are on the class
 * path. Only this package may hand plugins of the class path to a node.
 */
public final class ElasticsearchNode {

    private ElasticsearchNode() {}

    public static void main(String[] arguments) throws Exception {
        LogConfigurator.configureESLogging();
        Settings.Builder settings = Settings.builder();
        for (String argument : arguments) {
            String[] pair = argument.split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), null, () -> "lockstep-kit");
        Node node = new Node(environment, new ClassPath(environment, List.of(Netty4Plugin.class, Root.class)));
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
            } catch (Exception failure) {
                failure.printStackTrace();
            }
            closed.countDown();
        }));
        node.start();
        closed.await();
    }

    /** Plugins of the class path. */
    private static final class ClassPath extends PluginsLoader {

        private final List<PluginLayer> layers = new ArrayList<>();

        ClassPath(Environment environment, List<Class<? extends Plugin>> plugins) throws IOException {
            super(Set.of(), Set.of(), Map.of());
            String version = Build.current().version();
            // Without jars in it: there is nothing to load that is not here.
            Path empty = Files.createDirectories(environment.pluginsDir());
            for (Class<? extends Plugin> plugin : plugins) {
                String name = plugin.getSimpleName();
                PluginDescriptor descriptor = new PluginDescriptor(
                    name, name, version, version, "17", plugin.getName(), null, List.of(), false, false, false, false);
                layers.add(new Layer(new PluginBundle(descriptor, empty)));
            }
        }

        @Override
        public Stream<PluginLayer> pluginLayers() {
            return layers.stream();
        }
    }

    private record Layer(PluginBundle pluginBundle) implements PluginsLoader.PluginLayer {

        @Override
        public ClassLoader pluginClassLoader() {
            return ElasticsearchNode.class.getClassLoader();
        }

        @Override
        public ModuleLayer pluginModuleLayer() {
            return ModuleLayer.boot();
        }
    }

    /** {@code GET /}, in the words of the module that answers it in the distribution, and which no registry carries. */
    public static final class Root extends Plugin implements ActionPlugin {

        private ClusterService cluster;

        @Override
        public Collection<?> createComponents(PluginServices services) {
            cluster = services.clusterService();
            return List.of();
        }

        @Override
        public Collection<RestHandler> getRestHandlers(
            Settings settings,
            NamedWriteableRegistry writeables,
            RestController controller,
            ClusterSettings clusterSettings,
            IndexScopedSettings indexSettings,
            SettingsFilter filter,
            IndexNameExpressionResolver resolver,
            Supplier<DiscoveryNodes> nodes,
            Predicate<NodeFeature> features) {
            return List.of(new BaseRestHandler() {
                @Override
                public String getName() {
                    return "main_action";
                }

                @Override
                public List<Route> routes() {
                    return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
                }

                @Override
                protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
                    return channel -> {
                        XContentBuilder answer = channel.newBuilder().prettyPrint();
                        channel.sendResponse(new RestResponse(RestStatus.OK, about(answer, cluster.state())));
                    };
                }
            });
        }

        private static XContentBuilder about(XContentBuilder answer, ClusterState state) throws IOException {
            Build build = Build.current();
            answer.startObject();
            answer.field("name", state.nodes().getLocalNode().getName());
            answer.field("cluster_name", state.getClusterName().value());
            answer.field("cluster_uuid", state.metadata().clusterUUID());
            answer.startObject("version");
            answer.field("number", build.qualifiedVersion());
            answer.field("build_flavor", build.flavor());
            answer.field("build_type", build.type().displayName());
            answer.field("build_hash", build.hash());
            answer.field("build_date", build.date());
            answer.field("build_snapshot", build.isSnapshot());
            answer.field("lucene_version", Version.LATEST.toString());
            answer.field("minimum_wire_compatibility_version", build.minWireCompatVersion());
            answer.field("minimum_index_compatibility_version", build.minIndexCompatVersion());
            answer.endObject();
            answer.field("tagline", "You Know, for Search");
            return answer.endObject();
        }
    }
}
